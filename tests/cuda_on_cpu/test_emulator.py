"""The emulator finds the faults that it is there for."""

import pytest
from cuda_on_cpu.emulator import compile_driver, execute

pytestmark = pytest.mark.cuda_on_cpu


def test_missing_barrier_is_a_race():
    result = execute(compile_driver("faulty", "thread"), "barrier")
    assert result.returncode != 0
    assert "data race" in result.stderr and "reverse_without_barrier" in result.stderr


def test_index_beyond_shared_memory_is_an_overflow():
    result = execute(compile_driver("faulty", "address"), "index")
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr and "write_beyond" in result.stderr
