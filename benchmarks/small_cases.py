"""Every op on every GPU backend, small and ragged, against the definition: for compute-sanitizer, which is slow.

No profiler here: CUPTI and the sanitizer cannot both watch. Run it alone to see that the kernels are right at all:

    python benchmarks/small_cases.py                     all backends that are here
    compute-sanitizer --tool racecheck python benchmarks/small_cases.py cuda
"""

import sys
from itertools import product

import torch

from rlhf_core.bench.gate import Unequal, check, compared, expected
from rlhf_core.bench.ops import operations
from rlhf_core.bench.prepared import Prepared
from rlhf_core.kernels import BackendError

SHAPES = {1: ("1", "257"), 2: ("1x1", "7x33", "3x1025", "130x5")}
"""By how many numbers a shape has."""
OF_OPS = {
    "attention": ("2x3x1x1x32", "5x70x4x2x64", "3x129x6x1x96", "2x200x2x2x128"),
    "attention_shared": ("2x33x3x17x4x2x64", "1x130x2x5x2x1x128"),
    "decode_attention": ("1x1x1x1x32", "5x600x8x1x64", "2x300x3x3x96", "3x257x14x2x128"),
    "decode_attention_shared": ("2x300x3x16x4x2x64", "1x257x2x260x9x1x128"),
    "logprobs_from_logits": ("1x2", "7x4097", "130x45"),
    "token_logprobs": ("1x8x2", "7x24x4097", "4100x16x45"),  # the last in two chunks
    "token_logprobs_entropy": ("1x8x2", "7x24x4097", "4100x16x45"),
    "linear_policy_loss": ("1x8x2x100", "33x24x4097x40", "4100x16x45x40"),
}
"""Of an op whose numbers mean something else: around the kernels' tiles, splits and chunks."""
DTYPES = {name: (torch.float32, torch.bfloat16) for name in ("decode_attention", "decode_attention_shared")}
"""Of an op that has kernels of its own for each."""


def main(backends: list[str]) -> int:
    """The exit code: 1 where a kernel computed something else."""
    device, wrong = torch.device("cuda"), 0
    for name, operation in operations().items():
        shapes = OF_OPS.get(name) or SHAPES[len(operation.dims)]
        for shape, dtype in product(shapes, DTYPES.get(name, (torch.float32,))):
            case = operation.case(shape, "ragged", dtype, device, seed=0)
            oracle = expected(operation, case)
            for backend in backends:
                prepared = Prepared(case, lambda o=operation, c=case, b=backend: o.outputs(c, b))
                try:
                    error = f"error {check(operation, compared(operation, prepared, prepared.forward()), oracle):.1e}"
                except BackendError as reason:
                    error = f"absent: {reason}"
                except Unequal as reason:
                    wrong += 1
                    error = f"WRONG: {reason}"
                print(f"{name:24} {shape:20} {str(dtype)[6:]:9} {backend:7} {error}", flush=True)
    torch.cuda.synchronize()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["cuda", "triton"]))
