"""Signals that stop a run, and the settings and errors of its processes."""

import os
import signal

import pytest
import torch

from training.process import StopSignal, is_connection_error, process_group, set_up_process


def test_a_first_signal_is_recorded_and_a_second_has_its_default_effect() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert stop.received == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_process_joins_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group() as (rank, num_processes):
        assert (rank, num_processes) == (0, 1) and not torch.distributed.is_initialized()


def test_lost_processes_are_told_from_other_errors() -> None:
    for text in ("[gloo/transport/tcp/pair.cc:547] Read timeout", "Connection closed by peer"):
        assert is_connection_error(RuntimeError(text))
    assert is_connection_error(torch.distributed.DistNetworkError("no answer"))
    assert not is_connection_error(RuntimeError("CUDA out of memory"))


def test_a_process_draws_the_same_numbers_after_the_same_seed() -> None:
    draws = []
    for _ in range(2):
        set_up_process(5)
        draws.append(torch.rand(3))
    assert torch.equal(*draws)
