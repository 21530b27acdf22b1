"""Every op on every GPU backend, small and ragged, against the definition: for compute-sanitizer, which is slow.

No profiler here: CUPTI and the sanitizer cannot both watch. Run it alone to see that the kernels are right at all:

    python benchmarks/small_cases.py                     all backends that are here
    compute-sanitizer --tool racecheck python benchmarks/small_cases.py cuda
"""

import sys

import torch

from rlhf_core.bench.gate import Unequal, check, compared, expected
from rlhf_core.bench.ops import operations
from rlhf_core.bench.prepared import Prepared
from rlhf_core.kernels import BackendError

SHAPES = {1: ("1", "257"), 2: ("1x1", "7x33", "3x1025", "130x5")}


def main(backends: list[str]) -> int:
    """The exit code: 1 where a kernel computed something else."""
    device, wrong = torch.device("cuda"), 0
    for name, operation in operations().items():
        for shape in SHAPES[len(operation.dims)]:
            case = operation.case(shape, "ragged", torch.float32, device, seed=0)
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
                print(f"{name:16} {shape:8} {backend:7} {error}", flush=True)
    torch.cuda.synchronize()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["cuda", "triton"]))
