"""The style sheet: light and dark, phones and paper. Colours are told apart with any vision."""

_LIGHT = """
  --page: #f6f7f9; --card: #ffffff; --text: #17202a; --soft: #566270; --edge: #dde2e8;
  --shade: #9aa7b566; --own: #0b62a8; --other: #8f9baa; --contested: #c2410c; --bad: #b3261e;
  --warn-ink: #8a4200; --warn-back: #fff4e5; --bad-ink: #9b1c14; --bad-back: #fdecea;
  --hint-ink: #0b5794; --hint-back: #e9f2fb; --marked: #eaf3fb;
  --s0: #eaf2fa; --s1: #d2e4f4; --s2: #b2d0ea; --s3: #8ab7dd;
  --s4: #3573ac; --s5: #22598e; --s6: #123a63; --low: #12202e; --high: #ffffff;
"""

_DARK = """
  --page: #0f1317; --card: #181d23; --text: #e8ebef; --soft: #a5b0bc; --edge: #2c343d;
  --shade: #000000aa; --own: #64aeee; --other: #7b8896; --contested: #f0935a; --bad: #ff8a80;
  --warn-ink: #f6bd7a; --warn-back: #33260f; --bad-ink: #ffaba3; --bad-back: #3a1a18;
  --hint-ink: #9ccbf6; --hint-back: #14293d; --marked: #16293b;
  --s0: #14273a; --s1: #183450; --s2: #1d466d; --s3: #235a8b;
  --s4: #5ea3dc; --s5: #8dc0ea; --s6: #c4dff6; --low: #eef5fb; --high: #0d1a26;
"""

STYLE = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
* {{ box-sizing: border-box; }}
html {{ -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }}
body {{
  margin: 0 auto; padding: 2rem 1.25rem 3rem; max-width: 60rem; background: var(--page);
  color: var(--text); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: break-word;
}}
h1, h2, h3 {{ line-height: 1.25; margin: 0; text-wrap: balance; }}
h1 {{ font-size: clamp(1.6rem, 5vw, 2.2rem); letter-spacing: -.02em; }}
h2 {{ font-size: 1.2rem; margin-bottom: .75rem; }}
h3 {{ font-size: 1rem; }}
p {{ margin: 0 0 .75rem; }}
code, pre {{ font: .875em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }}
.over-title {{ margin: 0 0 .25rem; color: var(--soft); font-size: .875rem; }}
.under-title {{ margin: .35rem 0 0; color: var(--soft); }}
.aid {{ color: var(--soft); font-size: .9rem; }}
.unseen {{ position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }}
.skip {{ position: absolute; left: -999px; padding: .5rem 1rem; background: var(--card); }}
.skip:focus {{ left: 1rem; top: 1rem; }}
a {{ color: var(--hint-ink); }}
:focus-visible {{ outline: 2px solid var(--own); outline-offset: 2px; border-radius: 4px; }}

nav {{ display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: 1.25rem 0; }}
nav a {{ padding: .3rem 0; font-size: .9rem; text-decoration: none; }}
nav a:hover {{ text-decoration: underline; }}
section > :last-child, section > :last-child > :last-child {{ margin-bottom: 0; }}
section {{
  margin-top: 1.25rem; padding: 1.4rem; background: var(--card); border: 1px solid var(--edge);
  border-radius: 12px; scroll-margin-top: 1rem;
}}
footer {{ margin-top: 1.5rem; color: var(--soft); font-size: .85rem; }}

.tiles {{
  display: grid; gap: .75rem; grid-template-columns: repeat(3, 1fr);
}}
.tile {{
  margin: 0; padding: .9rem 1rem; background: var(--card); border: 1px solid var(--edge);
  border-radius: 12px;
}}
.tile dt {{ color: var(--soft); font-size: .85rem; }}
.tile dd {{ margin: 0; }}
.tile .value {{
  font-size: 1.7rem; font-weight: 650; letter-spacing: -.02em; line-height: 1.3;
  white-space: nowrap; font-variant-numeric: tabular-nums;
}}
.tile .detail {{ color: var(--soft); font-size: .84rem; line-height: 1.4; }}

.notes {{ list-style: none; margin: 0; padding: 0; display: grid; gap: .6rem; }}
.notes li {{ display: flex; gap: .9rem; padding: .75rem .9rem; border-radius: 8px; }}
.notes li > div {{ min-width: 0; }}
.notes p {{ margin: .15rem 0 0; font-size: .9rem; overflow-wrap: anywhere; }}
.level {{ flex: none; width: 4.2rem; font-size: .8rem; font-weight: 650; line-height: 1.9; }}
.problem {{ background: var(--bad-back); }} .problem .level {{ color: var(--bad-ink); }}
.warning {{ background: var(--warn-back); }} .warning .level {{ color: var(--warn-ink); }}
.hint {{ background: var(--hint-back); }} .hint .level {{ color: var(--hint-ink); }}

.scroll {{ /* a shadow where there is more to the right */
  overflow-x: auto; margin-bottom: .75rem; position: relative;
  background:
    linear-gradient(to left, var(--card) 40%, transparent) 100% 0 / 2.5rem 100% no-repeat local,
    linear-gradient(to left, var(--shade), transparent) 100% 0 / .8rem 100% no-repeat;
}}
table {{ border-collapse: collapse; min-width: 100%; font-size: .9rem; }}
th, td {{ padding: .42rem .7rem; text-align: right; white-space: nowrap; vertical-align: top; }}
th:first-child {{ text-align: left; padding-left: .2rem; }}
td {{ font-variant-numeric: tabular-nums; }}
thead th {{ color: var(--soft); font-weight: 500; font-size: .82rem; vertical-align: bottom; }}
tbody th {{ font-weight: 450; white-space: normal; min-width: 11rem; overflow-wrap: anywhere; }}
tbody tr {{ border-top: 1px solid var(--edge); }}
tr.marked {{ background: var(--marked); }} tr.marked th, tr.marked td {{ font-weight: 650; }}
small {{ display: block; color: var(--soft); font-size: .8rem; font-weight: 400; }}
svg {{ display: block; overflow: visible; font: 12px system-ui, sans-serif; }}
svg text {{ fill: var(--soft); }}
.beside {{ display: flex; align-items: center; gap: .75rem; justify-content: end; }}
.beside span {{ min-width: 4rem; }}
.beside svg {{ flex: 1; width: 6rem; min-width: 6rem; height: 10px; }}
.bar.own rect, .dot circle {{ fill: var(--own); }}
.other rect {{ fill: var(--other); }}
.rail {{ stroke: var(--edge); stroke-width: 2; }}
.goal {{ stroke: var(--contested); stroke-width: 1.5; }}

figure {{ margin: 0; }}
figcaption {{ margin-bottom: .5rem; }}
figcaption p {{ margin: .1rem 0 0; }}
section > figure + figure, section > .scroll + figure, section > .scroll + h3,
section > p + figure, figure + h3, pre + h3, details + h3 {{ margin-top: 1.75rem; }}
.columns {{ display: flex; height: 172px; margin: .5rem 0; }}
.columns .axis {{ flex: none; width: 60px; height: 172px; }}
.columns .axis text {{ text-anchor: end; }}
.columns .area {{ flex: 1; min-width: 0; height: 172px; }}
.area rect {{ fill: var(--own); }}
.area rect.contested {{ fill: var(--contested); }}
.area rect.aside {{ fill: var(--other); }}
.area .grid {{ stroke: var(--edge); }}
.area .goal {{ stroke-dasharray: 5 4; }}
.under, .over, .on {{ text-anchor: middle; }}
.over {{ paint-order: stroke; stroke: var(--card); stroke-width: 4; }}
.area .over {{ fill: var(--text); }}
.heat text {{ text-anchor: end; }} .heat .under, .heat .on {{ text-anchor: middle; }}
.heat svg {{ margin: 0; }}
.s0 {{ fill: var(--s0); }} .s1 {{ fill: var(--s1); }} .s2 {{ fill: var(--s2); }}
.s3 {{ fill: var(--s3); }} .s4 {{ fill: var(--s4); }} .s5 {{ fill: var(--s5); }}
.s6 {{ fill: var(--s6); }}
svg .t0, svg .t1, svg .t2, svg .t3 {{ fill: var(--low); }}
svg .t4, svg .t5, svg .t6 {{ fill: var(--high); }}
.legend {{
  display: flex; align-items: center; gap: .5rem; color: var(--soft); font-size: .8rem;
  margin: 0 0 .5rem;
}}

details {{ margin-top: .25rem; }}
summary {{ cursor: pointer; color: var(--hint-ink); font-size: .9rem; padding: .25rem 0; }}
details[open] > summary {{ margin-bottom: .5rem; }}
pre {{
  margin: 0 0 .75rem; padding: .9rem 1rem; overflow-x: auto; background: var(--page);
  border: 1px solid var(--edge); border-radius: 8px; user-select: all;
}}
.facts {{
  display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.25rem; margin: 0 0 1rem;
}}
.facts dt {{ color: var(--soft); }}
.facts dd {{ margin: 0; min-width: 0; overflow-wrap: anywhere; }}

@media (max-width: 34rem) {{
  body {{ padding: 1.25rem .75rem 2rem; }}
  section {{ padding: 1rem .9rem; border-radius: 10px; }}
  .tiles {{ grid-template-columns: 1fr 1fr; gap: .5rem; }}
  .tile {{ padding: .7rem .8rem; }} .tile .value {{ font-size: 1.25rem; }}
  .notes li {{ display: block; }}
  tbody th {{ min-width: 6.5rem; }} th, td {{ padding-inline: .45rem; }}
  .beside {{ gap: .4rem; }} .beside svg {{ width: 2.5rem; min-width: 2.5rem; }}
  .beside span {{ min-width: 3.4rem; }}
  .crowded .over {{ display: none; }}
  .facts {{ grid-template-columns: 1fr; gap: 0; }} .facts dd {{ margin-bottom: .5rem; }}
}}
@media (prefers-reduced-motion: reduce) {{ html {{ scroll-behavior: auto; }} }}
@media print {{
  :root {{ --page: #ffffff; }}
  body {{ max-width: none; padding: 0; font-size: 10pt; print-color-adjust: exact; }}
  nav, .skip {{ display: none; }}
  section {{ border: 0; border-top: 1px solid var(--edge); border-radius: 0; padding: 1rem 0; }}
  figure, tr, .tile, .notes li {{ break-inside: avoid; }}
  h2, h3, figcaption, .aid {{ break-after: avoid; }}
  .scroll, pre {{ overflow: visible; }}
  pre {{ white-space: pre-wrap; }}
  details:not(.printed) {{ display: none; }}
  details.printed::details-content {{ content-visibility: visible; block-size: auto; }}
}}
"""
