"""The C tests (ctest: op_runner, GGUF reader, sampler, quantiser, fuzz corpus), built from this checkout and run as one test."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-8000:]}"


@pytest.mark.slow
def test_c_tests(tmp_path: Path) -> None:
    """Configure, build and run; HYSPARSE_TEST_BUILD names a build folder to keep between runs."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    build = Path(os.environ.get("HYSPARSE_TEST_BUILD", tmp_path / "build"))
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run(["cmake", "-S", str(ROOT), "-B", str(build), *generator, "-DHYSPARSE_BUILD_TESTS=ON", f"-DPython_EXECUTABLE={sys.executable}"])
    run(["cmake", "--build", str(build), "-j", str(os.cpu_count() or 1)])
    run(["ctest", "--test-dir", str(build), "--output-on-failure"])
