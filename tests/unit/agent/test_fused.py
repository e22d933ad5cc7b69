"""Triton's kernel: interpreted on the CPU, and compiled for GPUs, but never run on one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from optwatch_agent.fused import kernel_for

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


@needs_triton
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_in_tritons_interpreter(which: str) -> None:
    """In a process of its own: Triton asks when it is imported whether to interpret."""
    tests = Path(__file__).with_name("interpreted.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which, str(tests)]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_without_triton_there_is_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "optwatch")
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "optwatch_agent.triton_kernels", raising=False)
    monkeypatch.delenv("OPTWATCH_TRITON", raising=False)
    assert kernel_for(torch.device("cpu")) is None
    assert caplog.text == ""  # nobody asked
    monkeypatch.setenv("OPTWATCH_TRITON", "1")
    assert kernel_for(torch.device("cpu")) is None
    assert "without Triton" in caplog.text


_COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from optwatch_agent import triton_kernels as k

pointers = dict(addresses="*i64", kinds="*i32", sizes="*i64", numbers="*fp64", owners="*i32", starts="*i64")
counts = dict(tensors="i32", chunks="i32")
first = dict(**pointers, out="*fp64", **counts, itself="i32", CHUNK="constexpr", BLOCK="constexpr")
second = dict(of_chunks="*fp64", ends="*i32", out="*fp64", **counts, SUMS="constexpr", COLUMNS="constexpr")
second["BLOCK"] = "constexpr"
for kernel, signature, constants in (
    (k.chunks_of, first, dict(CHUNK=k.CHUNK, BLOCK=k.BLOCK)),
    (k.tensors_of, second, dict(SUMS=k.SUMS, COLUMNS=15, BLOCK=64)),
):
    built = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", int(sys.argv[1]), 32),
        options=dict(num_warps=4, enable_fp_fusion=True),
    )
    assert built.asm["cubin"]
"""


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [70, 80, 90])
def test_it_compiles_for_gpus(capability: int) -> None:
    """The assembler comes with Triton and needs no GPU."""
    subprocess.run([sys.executable, "-c", _COMPILE, str(capability)], check=True, timeout=300)
