"""One backbone, many adapters: every answer is that of the adapter's own merged model."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_on_disk import BACKBONE, KINDS, png, write_adapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitune.backbones import load_backbone, logits_of
from vitune.cards import AdapterCard
from vitune.data import Decoding, decode_bytes, normalise
from vitune.errors import AdapterError, DataError, VituneError
from vitune.inference import load_run, merge_run
from vitune.serving import Engine, EngineSettings, UnknownAdapterError, Upload
from vitune.serving.sharing import extra_bytes
from vitune.serving.trees import Values

IMAGES = [Upload(f"{seed}.png", png(seed)) for seed in range(3)]
QUIET = {"watch_s": 0.0, "max_wait_ms": 1.0, "device": "cpu"}


@torch.inference_mode()
def expected(folder: Path, uploads: list[Upload] = IMAGES) -> Tensor:
    """Logits of the merged model that `vitune predict` would run."""
    run = load_run(folder, device="cpu")
    preprocessing = run.card.preprocessing
    pixels = [decode_bytes(one.content, Decoding(preprocessing), one.name) for one in uploads]
    images = torch.stack([torch.tensor(one) for one in pixels]).permute(0, 3, 1, 2)
    logits = logits_of(run.model(normalise(images, preprocessing))).float()
    return logits / run.card.temperature


@pytest.fixture(scope="module")
def wanted(adapters: Path) -> dict[str, Tensor]:
    return {name: expected(adapters / name) for name in KINDS}


@pytest.fixture
def started() -> Iterator[Callable[..., Engine]]:
    """Engines that are closed when the test ends."""
    engines: list[Engine] = []

    def start(folder: Path, **settings: Any) -> Engine:
        engines.append(Engine(folder, EngineSettings(**{**QUIET, **settings})))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def difference(found: Tensor, of: Tensor) -> float:
    return ((found - of).abs().max() / of.abs().max()).item()


@pytest.mark.parametrize(("cache_mib", "cached"), [(0, 0), (12, 2)])
def test_logits_are_those_of_the_merged_model(
    adapters: Path,
    wanted: dict[str, Tensor],
    started: Callable[..., Engine],
    cache_mib: float,
    cached: int,
) -> None:
    engine = started(adapters, cache_mib=cache_mib)
    for _ in range(2):
        for name in KINDS:
            answers = engine.predict(name, IMAGES)
            found = torch.stack([one.logits for one in answers])
            assert difference(found, wanted[name]) < 1e-5, name
            assert answers[0].classes[0] == f"{name} 0"
    assert engine.cache.used <= cache_mib * 2**20
    assert len(engine.cache) == cached


def test_merged_tokens_are_merged_while_serving(
    tmp_path: Path, started: Callable[..., Engine]
) -> None:
    """Merged, un-merged, and beside an adapter of the same configuration that keeps its tokens."""
    kinds = {
        "all": ("rlrr", "keep"),
        "half": ("rlrr", "merge:0.5@1"),
        "apart": ("met", "merge:0.5"),
        "training": ("rlrr", "merge:0.5:train"),
    }
    for name, (method, tokens) in kinds.items():
        write_adapter(tmp_path / name, method, tokens=tokens)
    wanted = {name: expected(tmp_path / name) for name in kinds}
    for cache_mib in (0, 64):
        engine = started(tmp_path, cache_mib=cache_mib)
        for name in (*kinds, *kinds):
            found = torch.stack([one.logits for one in engine.predict(name, IMAGES)])
            assert difference(found, wanted[name]) < 1e-5, (name, cache_mib)
        assert engine.get("all").tree is engine.get("training").tree


def test_many_clients_at_once_get_each_their_own_adapters_answers(
    engine: Engine, wanted: dict[str, Tensor]
) -> None:
    names = list(KINDS) * 8

    def ask(index: int) -> tuple[str, int, Tensor, int]:
        name, image = names[index], index % len(IMAGES)
        (answer,) = engine.predict(name, [IMAGES[image]])
        return name, image, answer.logits, answer.batch_size

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(len(names))))
    for name, image, logits, _ in answers:
        assert difference(logits, wanted[name][image]) < 1e-5
    assert max(size for *_, size in answers) > 1


def test_a_batch_of_two_names_for_equal_files_counts_for_both(
    tmp_path: Path, started: Callable[..., Engine]
) -> None:
    shutil.copytree(write_adapter(tmp_path / "one"), tmp_path / "two")
    engine = started(tmp_path, max_wait_ms=500.0)
    served = [engine.get(name) for name in ("one", "two", "two")]
    futures = [engine.submit(one, engine.decode(one, IMAGES[:1]))[0] for one in served]
    assert [future.result().batch_size for future in futures] == [3, 3, 3]
    assert engine.num_images == {"one": 1, "two": 2}


def test_embeddings_are_what_the_classifier_sees(engine: Engine, adapters: Path) -> None:
    (answer,) = engine.predict("rocks", IMAGES[:1])
    head = load_run(adapters / "rocks", device="cpu").model.get_submodule("head")
    assert torch.allclose(head(answer.features), answer.logits, atol=1e-5)  # temperature 1


def test_adapters_of_one_configuration_share_one_model(engine: Engine) -> None:
    rocks, birds = engine.get("rocks"), engine.get("birds")
    assert rocks.tree is birds.tree and rocks.tree is not engine.get("ships").tree
    network = engine.backbone.model
    assert extra_bytes(rocks.tree.runner, network) < 0.2 * rocks.tree.merged_bytes
    stored = load_file(engine.folder / "rocks" / "adapter_model.safetensors")
    assert rocks.values.memory.numel() < 1.1 * sum(value.nbytes for value in stored.values())


def test_packed_values_come_back_as_they_were() -> None:
    tensors = [torch.randn(3, 5), torch.arange(7), torch.tensor(1.5), torch.ones(2).bfloat16()]
    packed = Values.packed(tensors, [value.dtype for value in tensors], torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(packed, tensors, strict=True))


class TestWatching:
    """Folders come, change and go while the engine runs."""

    @pytest.fixture
    def folder(self, adapters: Path, tmp_path: Path) -> Path:
        shutil.copytree(adapters / "rocks", tmp_path / "in" / "rocks")
        return tmp_path / "in"

    def test_adapters_are_added_replaced_and_removed(
        self, folder: Path, adapters: Path, wanted: dict[str, Tensor],
        started: Callable[..., Engine],
    ) -> None:  # fmt: skip
        engine = started(folder)
        held = engine.get("rocks")
        assert not engine.refresh()
        shutil.copytree(adapters / "ships", folder / "ships")
        assert engine.refresh().added == ["ships"]
        shutil.rmtree(folder / "rocks")
        shutil.copytree(adapters / "birds", folder / "rocks")
        assert engine.refresh().replaced == ["rocks"]
        found = torch.stack([one.logits for one in engine.predict("rocks", IMAGES)])
        assert difference(found, wanted["birds"]) < 1e-5
        pixels = engine.decode(held, IMAGES)
        before = [future.result() for future in engine.submit(held, pixels)]
        assert before[0].fingerprint == held.fingerprint != engine.get("rocks").fingerprint
        found = torch.stack([one.logits for one in before])
        assert difference(found, wanted["rocks"]) < 1e-5  # a request keeps what it began with
        shutil.rmtree(folder / "ships")
        assert not engine.refresh() and engine.get("ships")  # gone for a moment is not gone
        assert engine.refresh().removed == ["ships"]
        with pytest.raises(UnknownAdapterError, match="got 'ships', expected one that is served"):
            engine.get("ships")

    def test_nothing_of_a_replaced_adapter_stays_once_its_requests_are_answered(
        self, folder: Path, adapters: Path, started: Callable[..., Engine]
    ) -> None:
        engine = started(folder)
        held = engine.get("rocks")
        pixels = engine.decode(held, IMAGES)
        shutil.rmtree(folder / "rocks")
        shutil.copytree(adapters / "trees", folder / "rocks")  # of another configuration
        assert engine.refresh().replaced == ["rocks"]
        late = [future.result() for future in engine.submit(held, pixels)]
        assert held.fingerprint not in engine.cache and not any(one.merged for one in late)
        engine.predict("rocks", IMAGES)
        networks = [weakref.ref(held.tree.reader), weakref.ref(held.tree.runner)]
        del held
        gc.collect()
        assert [one() for one in networks] == [None, None]

    def test_files_written_anew_with_the_same_content_replace_nothing(
        self, folder: Path, started: Callable[..., Engine]
    ) -> None:
        engine = started(folder)
        for file in (folder / "rocks").iterdir():
            file.write_bytes(file.read_bytes())
        assert not engine.refresh()

    def test_what_is_broken_later_leaves_the_earlier_version_in_service(
        self, folder: Path, started: Callable[..., Engine]
    ) -> None:
        engine = started(folder)
        before = engine.get("rocks").fingerprint
        (folder / "rocks" / "adapter_model.safetensors").write_bytes(b"\0" * 100)
        assert engine.refresh().refused == ["rocks"]
        assert engine.get("rocks").fingerprint == before
        (listed,) = engine.listing()["adapters"]
        assert listed["state"] == "served" and "damaged file" in listed["problem"]
        assert engine.predict("rocks", IMAGES[:1])

    def test_a_folder_that_is_away_takes_nothing_out_of_service(
        self, folder: Path, started: Callable[..., Engine]
    ) -> None:
        engine = started(folder)
        folder.rename(folder.with_name("away"))
        assert not engine.refresh() and not engine.refresh() and engine.get("rocks")


def _edit_card(folder: Path, **values: Any) -> None:
    card = json.loads((folder / "vitune.json").read_text())
    (folder / "vitune.json").write_text(json.dumps({**card, "checksums": {}, **values}))


def _with_nan(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors")
    _edit_card(folder, checksums={})


def _of_other_size(folder: Path) -> None:
    preprocessing = AdapterCard.read(folder).preprocessing.to_dict()
    _edit_card(folder, preprocessing={**preprocessing, "image_size": [64, 64]})


REFUSED = {
    "weights v1-00, expected v1-": lambda f: _edit_card(f, fingerprint="v1-00"),
    "image size: got (64, 64), expected (32, 32)": _of_other_size,
    "NaN or infinity": _with_nan,
    "without vitune.json": lambda f: (f / "vitune.json").unlink(),
    "without adapter_config.json": lambda f: (f / "adapter_config.json").unlink(),
    "got a damaged card": lambda f: (f / "vitune.json").write_text("[]"),
    "the file is damaged": lambda f: (f / "adapter_config.json").write_text("{}"),
    "got a merged model": lambda f: _edit_card(f, merged=True),
    "UnicodeEncodeError": lambda f: _edit_card(f, classes=["\ud800", "b", "c"]),
    "of the wrong shape": lambda f: _edit_card(f, classes=["a", "b"]),
    "a folder called 'odd\\nname'": lambda f: f.rename(f.with_name("odd\nname")),
}


def test_what_cannot_be_served_is_listed_with_the_reason_and_harms_nobody(
    adapters: Path, tmp_path: Path, started: Callable[..., Engine]
) -> None:
    shutil.copytree(adapters / "birds", tmp_path / "good")
    (tmp_path / ".hidden").mkdir()
    for index, (reason, harm) in enumerate(REFUSED.items()):
        bad = shutil.copytree(adapters / "rocks", tmp_path / f"bad-{index}")
        harm(bad)
        assert reason
    engine = started(tmp_path)
    listed = engine.listing()["adapters"]
    assert [one["name"] for one in listed if one["state"] == "served"] == ["good"]
    problems = {one["name"]: one["problem"] for one in listed if one["state"] == "refused"}
    assert len(problems) == len(REFUSED)
    for index, reason in enumerate(REFUSED):
        text = problems.get(f"bad-{index}") or problems["odd\nname"]
        assert reason in text and str(tmp_path) not in text, text
    assert engine.predict("good", IMAGES[:1])
    with pytest.raises(UnknownAdapterError, match=r"adapter 'bad-2' was refused: .*NaN"):
        engine.get("bad-2")


def test_merged_models_are_refused(adapters: Path, tmp_path: Path) -> None:
    merge_run(adapters / "rocks", tmp_path / "merged")
    with pytest.raises(AdapterError, match="without a run or adapter in its subfolders"):
        Engine(tmp_path, EngineSettings(**QUIET))


def test_an_adapter_of_other_weights_is_refused(
    adapters: Path, tmp_path: Path, started: Callable[..., Engine]
) -> None:
    other = load_backbone(BACKBONE, num_classes=1).model.state_dict()
    torch.manual_seed(1)
    for name in other:
        if name.endswith("fc1.weight"):
            other[name] = other[name] + 0.1 * torch.randn_like(other[name])
    save_file(other, tmp_path / "other.safetensors")
    write_adapter(
        tmp_path / "in" / "stranger",
        backbone_args={"checkpoint": str(tmp_path / "other.safetensors")},
    )
    shutil.copytree(adapters / "rocks", tmp_path / "in" / "rocks")
    shutil.copytree(adapters / "birds", tmp_path / "in" / "birds")
    engine = started(tmp_path / "in")
    assert sorted(engine.collection.served) == ["birds", "rocks"]
    assert "expected v1-" in engine.collection.refused["stranger"]


def test_a_run_folder_is_an_adapter_too(
    adapters: Path, tmp_path: Path, started: Callable[..., Engine]
) -> None:
    shutil.copytree(adapters / "rocks", tmp_path / "run" / "adapter")
    assert started(tmp_path).get("run").classes[0] == "rocks 0"


def test_an_empty_folder_can_be_started_with_a_backbone(
    adapters: Path, tmp_path: Path, started: Callable[..., Engine]
) -> None:
    engine = started(tmp_path, backbone=BACKBONE)
    assert engine.listing()["adapters"] == []
    shutil.copytree(adapters / "rocks", tmp_path / "rocks")
    engine.refresh()
    assert engine.predict("rocks", IMAGES[:1])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (png()[:200], "expected an intact image file"),
        (b"<svg/>", "no kind of image that is read"),
        (b"", "no kind of image that is read"),
        (png(size=(3000, 10)), "got 0.0 megapixels, expected at most 0.01"),
    ],
)
def test_bad_images_are_named(engine: Engine, content: bytes, reason: str) -> None:
    served = engine.get("rocks")
    small = Decoding(served.card.preprocessing, max_megapixels=0.01)
    with pytest.raises(DataError, match=reason):
        decode_bytes(content, small, "x.png")
    with pytest.raises(DataError, match=r"^image 'x\.png': .*(it|them)\.$"):
        decode_bytes(content, small, "x.png")


def test_a_decompression_bomb_is_refused_by_its_header(engine: Engine) -> None:
    bomb = bytearray(png())
    for side, megapixels in ((40_000, "over 178"), (6_000, "36.0")):
        bomb[16:24] = side.to_bytes(4, "big") * 2
        bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
        with pytest.raises(DataError, match=rf"got {megapixels} megapixels, expected at most 25"):
            engine.predict("rocks", [Upload("bomb.png", bytes(bomb))])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("cache_mib", -1), ("cache_mib", float("nan")), ("cache_mib", 1e12), ("max_batch", 0),
        ("max_wait_ms", -1), ("max_queue", 0), ("max_megapixels", 200), ("watch_s", -1),
        ("device", "tpu"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(VituneError, match=r"^--[a-z-]+: got .*, expected"):
        EngineSettings(**{"device": "cpu", setting: value})
