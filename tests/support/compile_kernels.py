"""Compile the GPU's kernels without a GPU and print the float32 operations that they came to."""

import re

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fedprune.pruning import triton_kernels, triton_sparsegpt

MATRIX = {"weight": "*bf16", "norms": "*fp32"}
LAYER = {**MATRIX, "numel": "i64", "d_in": "i32", "chunk": "i32"}
SIZES = dict.fromkeys(("rows", "d_in", "start", "width"), "i32")
KERNELS = [
    (
        triton_kernels.rows_kernel,
        {**MATRIX, "bits": "*u8", "finite": "*i1", "d_in": "i32", "prune": "i32"},
        {"WIDTH": 4096},
    ),
    (
        triton_kernels.groups_kernel,
        {**MATRIX, "bits": "*u8", "finite": "*i1", "numel": "i64", "d_in": "i32"},
        {"N": 2, "M": 4, "TILE": 1024},
    ),
    *(
        (
            triton_kernels.histogram_kernel,
            {**LAYER, "counts": "*i32", "prefix": "*i32"},
            {"SHIFT": shift, "TILE": 2048},
        )
        for shift in (20, 0)
    ),
    (
        triton_kernels.below_kernel,
        {**LAYER, "code": "*i32", "quotas": "*i32", "bits": "*u8"},
        {"TILE": 2048},
    ),
    *(
        (
            triton_sparsegpt.eliminate_kernel,
            {
                **dict.fromkeys(("weights", "errors", "upper", "scales"), "*fp32"),
                "keep": "*i1",
                **SIZES,
            },
            {"N": n, "M": m, "ROWS": 16, "COLUMNS": 128},
        )
        for n, m in ((1, 1), (2, 4))
    ),
]


def main() -> None:
    found = set()
    for kernel, signature, constants in KERNELS:
        source = ASTSource(
            fn=kernel,
            signature={
                name: "constexpr" if name in constants else signature[name]
                for name in kernel.arg_names
            },
            constexprs={(kernel.arg_names.index(name),): n for name, n in constants.items()},
        )
        target = GPUTarget("cuda", 80, 32)
        code = triton.compile(source, target=target, options={"enable_fp_fusion": False})
        # What picks a pivot is rounded as it may be.
        found |= set(re.findall(r"(?:add|sub|mul|fma|div|abs)\.\S*f32", code.asm["ptx"]))
    print(*sorted(found))


if __name__ == "__main__":
    main()
