"""Attention, log-probs and sampling under the narrower instruction sets, in processes of their own.

The widest that the processor has is what the other tests run on.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .compiled import needs_cpu

pytestmark = needs_cpu("attention")

TESTS = {
    "attention": "test_head_sizes or test_scales",
    "decode_attention": "test_decoding_sizes or test_decoding_does_not_depend",
    "logprobs": "test_sizes and 517 or test_impossible_tokens or test_strides",
    "linear_policy_loss": "test_sizes or test_strides",
    "sampling": "test_words or test_linear_strides or test_the_ends",
}


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
@pytest.mark.parametrize("name", TESTS)
def test_narrower_instruction_sets(name: str, isa: str) -> None:
    file = Path(__file__).with_name(f"test_cpu_{name}.py")
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "--show-capture=no", str(file), "-k", TESTS[name]]
    found = subprocess.run(
        command, env={**os.environ, "RLHF_CPU_ISA": isa}, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, "\n".join(found.stdout.splitlines()[-12:])
