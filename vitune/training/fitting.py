"""`fit`: from a configuration to a finished run folder."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration
from peft import PeftModel

from vitune.adapters import fingerprint_of, inject, save_adapter
from vitune.backbones import Backbone, load_backbone, start_heads
from vitune.counts import count_parameters, trained_parts
from vitune.data import Augment, Splits, UsedImages, augmentation, open_source
from vitune.environment import Environment
from vitune.errors import AdapterError, DataError, VituneError
from vitune.fewer_tokens import reduce_tokens
from vitune.machine import ProcessorUse
from vitune.methods import PROBE, get_method, method_notice
from vitune.objectives import new_objective
from vitune.report import check_readable
from vitune.runs import Calibration, Reported, RunFolder
from vitune.training.accounting import facts_of, reset_peak, with_outcome
from vitune.training.augmenting import with_augmentation
from vitune.training.keeping import Trained as Trained
from vitune.training.keeping import backbone_arguments as backbone_arguments
from vitune.training.keeping import card_for, method_arguments, write_result
from vitune.training.loop import Loop, Recipe
from vitune.training.memory import require_memory
from vitune.training.metrics import append_row
from vitune.training.observer import Observer
from vitune.training.precision import BF16_WIDTH as WIDE
from vitune.training.precision import network_width, resolve_precision
from vitune.training.probing import Probe
from vitune.training.record import (
    Resolved,
    RunRecord,
    Start,
    plain_config,
    plain_fields,
    plain_optimiser,
    set_optimiser,
)
from vitune.training.resume_point import has_checkpoint, read_progress
from vitune.training.scarce import lone_classes, scarcity_notice
from vitune.training.settling import (
    filled_in,
    new_settings,
    resumed_record,
    typed_arguments,
    with_fitting_batch,
)
from vitune.training.solving import solved_model, solved_settings, with_solution
from vitune.training.speed_presets import FASTER
from vitune.training.splits_to_train import prepare_data
from vitune.training.starting import (
    keep_probe,
    kept_probe,
    probe_alone,
    staged_probe,
    starting_probe,
    with_start,
)
from vitune.training.train_config import TrainConfig
from vitune.training.verdict import calibration, compare


@dataclass(frozen=True)
class _Known:
    """What a caller knows of a run beforehand, see `fit`."""

    probe: Probe | None
    temperature: float | None
    notice: str


def fit(
    config: TrainConfig | None = None,
    *,
    out: str | Path | RunFolder | None = None,
    resume: bool = False,
    observer: Observer | None = None,
    splits: Splits | None = None,
    probe: Probe | None = None,
    temperature: float | None = None,
    **settings: Any,
) -> Trained:
    """Train one method on one data source and keep the result in a run folder.

    Only training and validation images are read; `vitune evaluate` opens a test split. The run
    folder appears when the first step can run; a start that fails leaves nothing behind.

    Args:
        config: the settings; or give them as keywords, e.g. `fit(data="photos/", epochs=20)`.
        out: a new folder for the run; None writes nothing.
        resume: continue the run in `out` from its checkpoint with its own settings.
        observer: receives progress.
        splits: decoded images of `config.data`, shared by several runs. `train` trains and `val`
            validates, whatever the config says about hold-out or refit.
        probe: solved on these splits already, so that many runs share it.
        temperature: to store with the run where there are no validation images to find one on.

    Raises:
        VituneError: unusable settings, data or backbone; the text names the remedy.
        OutputError: `out` is not empty, or another process writes to it.
        TrainingError: the loss became non-finite; the last checkpoint is kept.
        OSError: for example a full disk; what was saved before is intact.
    """
    if resume and out is None:
        raise VituneError("resume: got no folder, expected out= with the run to continue.")
    folder = out if isinstance(out, RunFolder) or out is None else RunFolder(Path(out))
    record, notice = None, ""
    if resume and folder is not None:
        record = resumed_record(folder.path, config, settings)
        asked = record.settings
    else:
        asked, notice = new_settings(config, settings)
    process = PartialState(cpu=_on_cpu(asked))
    observer = (observer or Observer()) if process.is_main_process else Observer()
    known = _Known(probe, temperature, notice)
    with ExitStack() as held:
        if folder is not None and process.is_main_process:
            if record is None:
                folder.check_new()
            else:
                held.enter_context(folder.held())
        held.enter_context(_threads(record))
        return _Job(asked, record, folder, process, observer, held, known).run(splits)


@dataclass(frozen=True)
class _Job:
    """A run to be made.

    Args:
        asked: its settings; a new run's are not filled in yet.
        record: of a run to continue; None for a new one.
        folder: where it is kept; None keeps nothing.
        held: what must be released at the end.
        known: what the caller found out already.
    """

    asked: TrainConfig
    record: RunRecord | None
    folder: RunFolder | None
    process: PartialState
    observer: Observer
    held: ExitStack
    known: _Known

    def run(self, given: Splits | None) -> Trained:
        """Everything, from the images to the report."""
        objective = self._objective()
        backbone, splits = self._ingredients(given)
        assert splits.train is not None
        images = UsedImages.of(splits.train, splits.val)
        if self.record is not None:
            self._check_images(images)
        scarcity = self._scarcity(given)
        if get_method(self.asked.method).solved:
            return self._solved(backbone, splits, images, objective, scarcity)
        probe, staged = self._probe(backbone, splits)
        settings = self._settings(backbone, splits, probe)
        model, method = self._adapted(backbone, settings)
        from_probe = settings.start == "probe"
        if from_probe and probe is not None and len(probe.head.bias):
            probe.head.place(model)
        accelerator = _new_accelerator(settings)
        counts = count_parameters(model)
        facts = facts_of(settings, backbone, counts, splits, accelerator, method_notice(model))
        facts = replace(facts, backbone_notice=self.known.notice, scarcity_notice=scarcity)
        self.observer.described(facts)
        fingerprint = fingerprint_of(model) if self.folder else ""
        loop = self._loop(model, backbone, splits, settings, objective, accelerator)
        resolved = Resolved(
            method=method,
            objective=objective,
            augmentation=loop.inputs.augment,
            preprocessing=backbone.preprocessing,
            fingerprint=fingerprint,
            optimiser=plain_optimiser(loop.raw_optimiser),
            threads=torch.get_num_threads(),
            num_processes=accelerator.num_processes,
            plugin=dict(get_method(settings.method).plugin),
        )
        if self.record is not None:
            self._check_unchanged(resolved)
            resolved = self.record.resolved
            set_optimiser(loop.raw_optimiser, resolved.optimiser)
            loop.restore()  # what is damaged is refused before the folder is written to
            if self.folder is not None:
                check_readable(self.folder.path)
        with self._kept(settings, resolved, images):
            if self.folder is not None and staged is not None:
                keep_probe(staged, self.folder)
            reset_peak(accelerator)
            use = ProcessorUse()
            loop.run()
            seen = loop.reported_logits()
            # For its side effect: accelerate has put autocast into the model's own `forward`, and
            # unwrapping takes it out again. The model that it returns is the one we have.
            accelerator.unwrap_model(loop.wrapped, keep_fp32_wrapper=False)
            verdict = None if probe is None or seen is None else compare(probe, *seen)
            summary = replace(
                with_outcome(facts, loop, accelerator, use),
                calibration=calibration(seen, self.known.temperature),
                probe=None if probe is None else probe.facts(),
                verdict=verdict,
            )
            path = None if self.folder is None else self.folder.path
            trained = Trained(path, model, backbone, splits.classes, summary, seen)
            if self.folder is not None and accelerator.is_main_process:
                trained = write_result(trained, self.folder, settings)
            if settings.choose_best and probe and verdict and verdict.probe_is_better:
                trained = self._chosen_probe(trained, settings, probe, accelerator)
            accelerator.wait_for_everyone()
        return trained

    def _loop(
        self,
        model: PeftModel,
        backbone: Backbone,
        splits: Splits,
        settings: TrainConfig,
        objective: dict[str, Any],
        accelerator: Accelerator,
    ) -> Loop:
        assert splits.train is not None
        return Loop(
            model,
            splits.train,
            splits.val,
            backbone.preprocessing,
            settings.model_copy(update={"objective_args": objective}),
            Recipe(settings.lr or 0.0, settings.weight_decay or 0.0, settings.head_lr),
            accelerator,
            self.observer,
            metrics_path=None if self.folder is None else self.folder.metrics,
            checkpoint_path=None if self.folder is None else self.folder.checkpoint,
            keep=partial(self._snapshot, model, backbone, splits.classes, settings),
            augment=self._augment(backbone, settings),
            has_start=settings.start == "probe",
        )

    def _solved(
        self,
        backbone: Backbone,
        splits: Splits,
        images: UsedImages,
        objective: dict[str, Any],
        scarcity: str,
    ) -> Trained:
        """A run without steps: the same files as of any run."""
        assert splits.train is not None
        settings = self.asked
        if self.record is None:
            settings = solved_settings(settings, self.process.device.type)
        accelerator = _new_accelerator(settings)
        reset_peak(accelerator)
        use = ProcessorUse()
        model, probe, own = solved_model(
            settings, backbone, splits, self.process.device, self.observer
        )
        counts = count_parameters(model)
        facts = facts_of(settings, backbone, counts, splits, accelerator, method_notice(model))
        facts = replace(facts, backbone_notice=self.known.notice, scarcity_notice=scarcity)
        self.observer.described(facts)
        resolved = Resolved(
            method=plain_config(get_method(settings.method).configure(backbone.model, own)),
            objective=objective,
            augmentation=self._augment(backbone),
            preprocessing=backbone.preprocessing,
            fingerprint=fingerprint_of(model) if self.folder else "",
            optimiser={"name": "none"},
            threads=torch.get_num_threads(),
            num_processes=accelerator.num_processes,
        )
        if self.record is not None:
            self._check_unchanged(resolved)
            resolved = self.record.resolved
        with self._kept(settings, resolved, images):
            summary = with_solution(facts, model, probe, self.known.temperature, accelerator, use)
            path = None if self.folder is None else self.folder.path
            trained = Trained(path, model, backbone, splits.classes, summary)
            if self.folder is not None and accelerator.is_main_process:
                self.folder.metrics.unlink(missing_ok=True)
                append_row(self.folder.metrics, probe.as_epoch(len(splits.train)))
                kept = settings.model_copy(update={"method_args": own})
                trained = write_result(trained, self.folder, kept)
            accelerator.wait_for_everyone()
        return trained

    def _chosen_probe(
        self, trained: Trained, settings: TrainConfig, probe: Probe, accelerator: Accelerator
    ) -> Trained:
        """The probe in the place of the adapted network, which is kept in RUN/adapted."""
        alone = probe_alone(settings, self.folder, probe, len(trained.classes))
        model = alone.to(accelerator.device)
        counts = count_parameters(model)
        method = get_method(PROBE)
        found = trained.summary.calibration or Calibration()
        summary = replace(
            trained.summary,
            chosen="probe",
            asked=settings.method,
            method=method.name,
            method_title=method.title,
            source=method.source,
            num_trainable=counts.trainable,
            num_trainable_without_head=counts.without_head,
            num_head=counts.head,
            trained_parts=trained_parts(model),
            reported=Reported("probe", 0, probe.val_accuracy),
            calibration=replace(found, temperature=probe.temperature),
        )
        chosen = replace(trained, model=model, summary=summary)
        if self.folder is not None and accelerator.is_main_process:
            self.folder.summary.unlink()
            shutil.copytree(self.folder.adapter, self.folder.path / "adapted", dirs_exist_ok=True)
            update = {"method": method.name, "method_args": {}, "tokens": "keep"}
            chosen = write_result(chosen, self.folder, settings.model_copy(update=update))
        return chosen

    def _probe(self, backbone: Backbone, splits: Splits) -> tuple[Probe | None, Path | None]:
        """The solved probe that the run starts from or is compared with, and where it is staged.

        The run folder does not exist yet, and to write the probe the backbone must be bare.
        """
        if self.record is not None and self.folder is not None:
            has_begun = has_checkpoint(self.folder.checkpoint)
            if has_begun or self.asked.start != "probe":
                return kept_probe(self.folder), None
        probe = starting_probe(
            self.asked, backbone, splits, self.process.device, self.observer,
            given=self.known.probe,
        )  # fmt: skip
        if probe is None or self.folder is None or not self.process.is_main_process:
            return probe, None
        staged = Path(self.held.enter_context(tempfile.TemporaryDirectory())) / "probe"
        staged_probe(probe, self.asked, staged, backbone, splits.classes)
        return probe, staged

    def _scarcity(self, given: Splits | None) -> str:
        """What the user should know of classes with a single image."""
        if given is not None:
            return ""
        is_solved = get_method(self.asked.method).solved
        return scarcity_notice(lone_classes(self.asked), solved=is_solved)

    def _objective(self) -> dict[str, Any]:
        """Every argument of the training loss; an impossible one is refused before any work."""
        if self.record is not None:
            return self.record.resolved.objective
        given = typed_arguments(self.asked.objective_args)
        smoothing = {"label_smoothing": self.asked.label_smoothing}
        return plain_fields(new_objective(self.asked.objective, {**smoothing, **given}))

    def _ingredients(self, given: Splits | None) -> tuple[Backbone, Splits]:
        """The backbone and the images, both checked."""
        config = self.asked
        classes = open_source(config.data).classes if given is None else given.classes
        # For whatever the checkpoint lacks (a new head) and the library draws for it.
        torch.manual_seed(config.seed)
        backbone = load_backbone(
            config.backbone,
            num_classes=len(classes),
            drop_path=config.drop_path,
            **backbone_arguments(config),
        )
        preprocessing = config.prepared(backbone.preprocessing)
        if self.record is not None:
            preprocessing = self.record.resolved.preprocessing
        backbone = replace(backbone, preprocessing=preprocessing)
        if config.head_init != "zero":
            start_heads(backbone.model, config.head_init)
        if config.checkpointing:
            _checkpoint_activations(backbone)
        if not get_method(config.method).solved:
            require_memory(backbone, config, self.process.device)
        with self.process.main_process_first():
            splits = self._images(backbone) if given is None else _sealed(given)
        return backbone, splits

    def _images(self, backbone: Backbone) -> Splits:
        """Training and validation images, decoded for the backbone."""
        return prepare_data(self.asked, backbone, self.observer, self._augment(backbone))

    def _augment(self, backbone: Backbone, settings: TrainConfig | None = None) -> Augment:
        """The augmentation of the run; of `settings` once nothing in them is open."""
        if self.record is not None:
            return self.record.resolved.augmentation
        return augmentation((settings or self.asked).augment, backbone.preprocessing.image_size)

    def _settings(self, backbone: Backbone, splits: Splits, probe: Probe | None) -> TrainConfig:
        """The settings with nothing left open."""
        if self.record is not None:
            return self.asked
        device = self.process.device.type
        width = WIDE if self.asked.speed in FASTER else network_width(backbone.model)
        precision = resolve_precision(self.asked.precision, device, width)
        assert splits.train is not None
        num_images = len(splits.train)
        asked = with_fitting_batch(self.asked, num_images)
        asked = with_start(asked, backbone.model, num_images, self.process.num_processes, probe)
        asked = with_augmentation(asked, backbone, splits.val, probe, device)
        return filled_in(asked, get_method(asked.method), precision, device)

    def _adapted(
        self, backbone: Backbone, settings: TrainConfig
    ) -> tuple[PeftModel, dict[str, Any]]:
        """The model with its adapter, and the method's every argument."""
        # Again: how many numbers were drawn meanwhile depends on the library that built the
        # network, and an adapter's start should depend on the seed alone.
        torch.manual_seed(settings.seed)
        if self.record is not None:
            config = self.record.resolved.new_peft_config()
        else:
            method = get_method(settings.method)
            config = method.configure(backbone.model, method_arguments(settings))
        arguments = plain_config(config)  # before PEFT sees it: it fills in what it finds
        model = inject(backbone.model, config)
        reduce_tokens(model, settings.token_plan)
        return model, arguments

    def _snapshot(
        self,
        model: PeftModel,
        backbone: Backbone,
        classes: tuple[str, ...],
        settings: TrainConfig,
        epoch: int,
    ) -> None:
        """Keep the adapter as it is after so many epochs."""
        if self.folder is not None:
            card = card_for(model, backbone, settings, classes)
            save_adapter(model, self.folder.snapshot(epoch), card)

    def _check_unchanged(self, now: Resolved) -> None:
        """See that a run goes on with the weights and processes that it began with.

        Raises:
            AdapterError: it does not; the text names what differs.
        """
        assert self.record is not None
        for name in ("fingerprint", "num_processes"):
            found, begun = getattr(now, name), getattr(self.record.resolved, name)
            if found != begun:
                raise AdapterError(
                    f"--resume: got {name} {found!r}, expected {begun!r}, with which the run was "
                    "begun. Restore it, or start a new run."
                )

    def _check_images(self, images: UsedImages) -> None:
        """See that a run goes on with the images that it began with.

        Raises:
            AdapterError: it does not; the text names what differs.
        """
        assert self.folder is not None
        if not self.folder.images.is_file() and not has_checkpoint(self.folder.checkpoint):
            return  # the start died between two files, before the first step
        difference = UsedImages.read(self.folder.images).difference(images)
        if difference is not None:
            raise AdapterError(
                f"--resume: got other images than the run began with: {difference}. Expected the "
                "same files with the same labels. Put them back, or start a new run."
            )

    @contextmanager
    def _kept(
        self, settings: TrainConfig, resolved: Resolved, images: UsedImages
    ) -> Iterator[None]:
        """Within: the folder tells what is being run. A new run that fails at once leaves none."""
        if self.folder is None or not self.process.is_main_process:
            yield
            return
        starts = () if self.record is None else self.record.starts
        if self.record is None:
            self.held.enter_context(self.folder.begun())
        progress = read_progress(self.folder.checkpoint)
        epoch = 0 if progress is None else progress.epoch
        start = Start(after_epoch=epoch, environment=Environment.here())
        _tell_differences(starts, start)
        RunRecord(settings, resolved, (*starts, start)).write(self.folder.config)
        images.write(self.folder.images)
        try:
            yield
        except (VituneError, RuntimeError, MemoryError):
            if self.record is None and not has_checkpoint(self.folder.checkpoint):
                self.folder.forget()
            raise


def _tell_differences(before: tuple[Start, ...], now: Start) -> None:
    """Warn where a run goes on with other software than it was begun with."""
    found = now.environment.differences(before[0].environment) if before else []
    if found:
        warnings.warn(
            f"--resume: {', '.join(found)}. The settings are the run's own, but its end may differ "
            "from that of a run in one go.",
            stacklevel=2,
        )


def _on_cpu(config: TrainConfig) -> bool:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise VituneError("--device: got 'cuda', expected a GPU that PyTorch can see. Use cpu.")
    return config.device == "cpu" or not torch.cuda.is_available()


@contextmanager
def _threads(record: RunRecord | None) -> Iterator[None]:
    """Within: as many CPU threads as a run was begun with."""
    before = torch.get_num_threads()
    if record is not None:
        torch.set_num_threads(record.resolved.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _sealed(splits: Splits) -> Splits:
    """The splits, among which there must be training images and no test split."""
    if splits.test is not None or splits.train is None:
        raise DataError(
            "splits: got a test split or no training split, expected train and perhaps val: a test "
            "split is opened after training."
        )
    return splits


def _new_accelerator(settings: TrainConfig) -> Accelerator:
    """accelerate's processes, devices and precision; one process may train several times."""
    # accelerate keeps the first run's precision for the whole process and refuses another.
    AcceleratorState._reset_state()
    precision = settings.precision
    return Accelerator(
        cpu=_on_cpu(settings),
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=settings.accumulation_steps,
        # Pinned batches are copied while the GPU computes; it is told of the next one meanwhile.
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
    )


def _checkpoint_activations(backbone: Backbone) -> None:
    """Recompute activations in the backward pass, where the backbone's library offers it."""
    for name, arguments in (
        ("set_grad_checkpointing", (True,)),
        ("gradient_checkpointing_enable", ()),
    ):
        if hasattr(backbone.model, name):
            getattr(backbone.model, name)(*arguments)
            return
    raise VituneError(
        f"--checkpointing: got backbone {backbone.name!r}, expected one that can recompute its "
        "activations (timm and transformers models can)."
    )
