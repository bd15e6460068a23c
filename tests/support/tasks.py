"""A task of lm-evaluation-harness on local files."""

import json
from pathlib import Path

ROWS = [
    {"question": "Return True if the file", "choices": ["exists", "xylophone"], "answer": 0},
    {"question": "This method returns the", "choices": ["zebra zebra", "value"], "answer": 1},
    {"question": "Raise an exception if the", "choices": ["value is not a", "qq"], "answer": 0},
    {"question": "The default value is", "choices": ["None", "of of of of"], "answer": 1},
]


def local_task(folder: Path, name: str = "mine") -> Path:
    """Write questions with two answers each and the YAML file that makes them a task."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    path = folder / f"{name}.yaml"
    path.write_text(
        f"""task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder / "rows.jsonl"}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
"""
    )
    return path
