"""The example of a federation: clients learn together and send adapters alone."""

from __future__ import annotations

import inspect
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import timm
import torch

from vitune.adapters import inject
from vitune.counts import count_parameters
from vitune.methods import get_method

EXAMPLE = Path(__file__).parents[2] / "examples" / "federated"
DATA = "demo:digits?train=300"
NO_FLOWER = "Flower is not installed; 'make test-federated' runs this beside the libraries it pins"


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import simulate

    yield simulate
    sys.modules.pop("simulate"), sys.modules.pop("client")


def vit_b16() -> torch.nn.Module:
    """RLRR on ViT-B/16 with ten classes, without memory for the weights."""
    with torch.device("meta"):
        network = timm.create_model("vit_base_patch16_224", num_classes=10)
        return inject(network, get_method("rlrr").configure(network, {}))


def test_three_clients_learn_and_send_little(simulate: ModuleType) -> None:
    accuracies, sent, whole = simulate.simulate("demo:digits?train=150", 3)
    assert len(accuracies) == 3 and accuracies[-1] > max(accuracies[0], 0.3)
    assert sent < whole / 20


def test_without_flower_it_is_the_federation_of_the_app(
    simulate: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []

    def federation(*given: object) -> tuple[list[float], int, int]:
        asked.append(given)
        return [], 0, 0

    told = inspect.signature(simulate.simulate).parameters["num_clients"].default
    trained = inspect.signature(simulate.Client.fit).parameters
    monkeypatch.setattr(simulate, "simulate", federation)
    monkeypatch.setattr(sys, "argv", ["simulate.py"])
    simulate.main()
    app = simulate.app_config()
    assert asked == [(app["data"], app["num-server-rounds"], app["method"])]
    assert told == app["num-clients"]
    assert (trained["epochs"].default, trained["lr"].default) == (app["local-epochs"], app["lr"])


def test_clients_have_different_images(simulate: ModuleType) -> None:
    dealt = simulate.shares("demo:digits?train=100", 3)
    seen = [image.tobytes() for share in dealt for split in share for image in split.images]
    assert len(dealt) == 3 and len(seen) == len(set(seen)) == 100


def test_the_mean_weighs_clients_by_their_images(simulate: ModuleType) -> None:
    one, two = {"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([4.0, 5.0])}
    assert simulate.averaged([(one, 1), (two, 2)])["a"].tolist() == [3, 4]


def test_numbers_of_another_method_are_refused(simulate: ModuleType) -> None:
    (share, *_) = simulate.shares("demo:digits?train=100", 3)
    client, other = (simulate.Client(*share, method=method) for method in ("rlrr", "bitfit"))
    before = client.numbers()
    with pytest.raises(ValueError, match=r"numbers from the server: got \d+ tensors"):
        client.set_numbers(other.numbers())
    after = client.numbers()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_on_vit_b16_rlrr_sends_a_three_hundredth(simulate: ModuleType) -> None:
    model = vit_b16()
    sent = sys.modules["client"].numbers_of(model)
    adapter = {name: value for name, value in sent.items() if "head" not in name}
    head = 10 * 769
    assert sum(value.numel() for value in adapter.values()) == 288_768
    assert sum(value.nbytes for value in adapter.values()) == pytest.approx(1.155e6, rel=1e-3)
    assert sum(value.numel() for value in sent.values()) == 288_768 + head
    assert 4 * (count_parameters(model).total - head) == pytest.approx(343.2e6, rel=1e-3)


def test_flowers_message_for_vit_b16(simulate: ModuleType) -> None:
    app = pytest.importorskip("flwr.app", reason=NO_FLOWER)
    sent = sys.modules["client"].numbers_of(vit_b16())
    record = app.ArrayRecord({name: torch.zeros(value.shape) for name, value in sent.items()})
    assert 4 * (288_768 + 7_690) < record.count_bytes() < 1.25e6


def free_port() -> int:
    with socket.socket() as any_free:
        any_free.bind(("127.0.0.1", 0))
        return int(any_free.getsockname()[1])


@pytest.fixture
def flower(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a `flwr` command that meets a SuperLink of its own on this machine."""
    pytest.importorskip("flwr", reason=NO_FLOWER)
    port, beside = free_port(), Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{beside}:{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
    (tmp_path / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\n'
        "insecure = true\n"
    )
    link = subprocess.Popen(
        [str(beside / "flower-superlink"), "--insecure", "--simulation", "--host", "127.0.0.1",
         "--port", str(port), "--log-file", str(tmp_path / "superlink.log")],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/health", link)
        yield environment
    finally:
        link.terminate()
        link.wait(30)


def wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "the SuperLink stopped"
        try:
            urlopen(url, timeout=1).close()
            return
        except (URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"no SuperLink after {seconds} s")


def test_flower_runs_three_clients_to_the_same_accuracy(
    simulate: ModuleType, flower: dict[str, str]
) -> None:
    done = subprocess.run(
        ["flwr", "run", str(EXAMPLE), "--stream", "--federation-config", "num-supernodes=3",
         "--run-config", f"data='{DATA}' num-server-rounds=3"],
        env=flower, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    accuracies, sent, _ = simulate.simulate(DATA, 3)
    found = re.findall(r"round \d: accuracy (\S+)% on held-out images", told)
    two_of_sixty = 3.4  # Flower adds up the clients in the order of their answers
    assert [float(value) for value in found] == pytest.approx(
        [100 * value for value in accuracies], abs=two_of_sixty
    ), told
    assert accuracies[-1] > max(accuracies[0], 0.3)
    came = re.findall(r"round \d: a client sent ([\d,]+) bytes", told)
    assert len(came) == 9
    assert all(sent < int(number.replace(",", "")) < 1.25 * sent for number in came)
