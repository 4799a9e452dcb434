"""Named faults, applied one by one; each must fail a test.

A fault that no test notices is a hole in the tests. Each is applied to a copy of the checkout, and only the
tests named with it are run. Prints a table; exits 1 when a fault survives or no longer applies.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("embedprior", "configs", "tests", "pyproject.toml", "train_prior.py")


@dataclass(frozen=True)
class Mutant:
    """One fault: ``before`` becomes ``after`` in ``file``; ``tests`` must then fail."""

    name: str
    file: str
    before: str
    after: str
    tests: str


MUTANTS = (
    Mutant(
        "CT leaks into a student",
        "embedprior/study/runner.py",
        "visible = cases if method.needs_ct else cases.without_ct()",
        "visible = cases",
        "tests/study/test_runner.py",
    ),
    Mutant(
        "held-out patients may train",
        "embedprior/study/runner.py",
        '    if both:\n        raise BadInput(f"{len(both)} held-out patients took part',
        '    if False:\n        raise BadInput(f"{len(both)} held-out patients took part',
        "tests/study/test_runner.py",
    ),
    Mutant(
        "random scores",
        "embedprior/students/student.py",
        "expit(self.network.logits(cases).astype(np.float64))",
        "np.random.default_rng(0).random(len(cases))",
        "tests/students/test_methods.py",
    ),
    Mutant(
        "shuffled ids in the cache",
        "embedprior/cache/reader.py",
        "have_ids = [exam_id for _, header in shards for exam_id in header.exam_ids]",
        "have_ids = [exam_id for _, header in shards for exam_id in header.exam_ids[::-1]]",
        "tests/cache/test_cache.py",
    ),
    Mutant(
        "a changed source file is not embedded again",
        "embedprior/cache/loading.py",
        "{i}\\0{s}",
        "{i}",
        "tests/cache/test_cache.py",
    ),
    Mutant(
        "rows of a shard not in the order of its ids",
        "embedprior/cache/build.py",
        "            rows = [held.rows[exam_id] for exam_id in ids]\n",
        "            rows = [held.rows[exam_id] for exam_id in ids[::-1]]\n",
        "tests/cache/test_cache.py",
    ),
    Mutant(
        "a cohort gets another cohort's row of the same exam id",
        "embedprior/cache/reader.py",
        "rows = [places.get(pair, -1) for pair in zip(ids, sources, strict=True)]",
        "rows = [have_ids.index(exam_id) for exam_id in ids]",
        "tests/cache/test_cache.py",
    ),
    Mutant(
        "an exam that is in a table twice is taken",
        "embedprior/cache/build.py",
        "    if again.any():\n",
        "    if False:\n",
        "tests/cache/test_cache.py",
    ),
    Mutant(
        "a file that changed between its hash and its reading is stored",
        "embedprior/cache/loading.py",
        "source_stamp(self._root, path) != stamps[exam_id]",
        "not stamps[exam_id]",
        "tests/cache/test_cache.py",
    ),
    Mutant(
        "an array file written again is read from the old map",
        "embedprior/imaging/files.py",
        "_mapped(str(file), state.st_ino, state.st_size, state.st_mtime_ns)",
        "_mapped(str(file))",
        "tests/cache/test_cache.py",
    ),
    Mutant(
        "rows by map taken from another shard",
        "embedprior/cache/reader.py",
        "wide * self.where[:, 1]",
        "wide * self.where[:, 0]",
        "tests/cache/test_reading.py",
    ),
    Mutant(
        "caches that share a folder look unused",
        "embedprior/runs/run.py",
        "names = {*self._kept_before, cache.name}",
        "names = {cache.name}",
        "tests/cli/test_embed.py",
    ),
    Mutant(
        "a lock that nobody signed is waited for as long as a signed one",
        "embedprior/runs/locks.py",
        "min(stale_after, UNSIGNED_AFTER_S)",
        "stale_after",
        "tests/runs/test_locks.py",
    ),
    Mutant(
        "caches of different preprocessing are not told apart",
        "embedprior/encoders/base.py",
        '        "profile": spec.profile,\n',
        "",
        "tests/cache/test_cache.py",
    ),
    Mutant(
        "checksum of a shard not compared",
        "embedprior/cache/shards.py",
        "head != _header(told, checksum, header.dtype",
        "head != _header(told, header.checksum, header.dtype",
        "tests/cache/test_repair.py",
    ),
    Mutant(
        "blocks claimed without looking",
        "embedprior/cache/build.py",
        "            if not lock.acquire():",
        "            if lock.acquire() and False:",
        "tests/cache/test_builders.py",
    ),
    Mutant(
        "a shard gets its name before it is whole",
        "embedprior/runs/files.py",
        "    temporary = temporary_beside(path)\n    try:\n        with saying",
        "    temporary = path\n    try:\n        with saying",
        "tests/test_runs.py",
    ),
    Mutant(
        "a live lock is taken over",
        "embedprior/runs/locks.py",
        "    return age > (stale_after if",
        "    return True or (stale_after if",
        "tests/runs/test_locks.py",
    ),
    Mutant(
        "normalisation of an encoder changed without a new transform_version",
        "embedprior/encoders/pixels.py",
        "Image.Resampling.BILINEAR",
        "Image.Resampling.NEAREST",
        "tests/encoders/test_golden.py",
    ),
    Mutant(
        "distillation without T²",
        "embedprior/students/losses.py",
        "return (temperature**2 if squared else 1.0) * divergence.mean()",
        "return divergence.mean()",
        "tests/students/test_methods.py",
    ),
    Mutant(
        "a patient may stand on both sides of a split",
        "embedprior/tables.py",
        "if mixed:",
        "if False:",
        "tests/test_tables.py",
    ),
    Mutant(
        "a half-written artifact counts as done",
        "embedprior/runs/artifacts.py",
        '    work = final.parent / f".tmp-{final.name}-{os.getpid()}"',
        "    work = final",
        "tests/test_runs.py",
    ),
    Mutant(
        "EMA weights unused",
        "embedprior/prior/trainer.py",
        "multi_avg_fn=ema_update(self._settings.ema)",
        "multi_avg_fn=ema_update(0.0)",
        "tests/prior/test_training.py",
    ),
    Mutant(
        "BCE term detached from the network",
        "embedprior/prior/losses.py",
        "self._bce(predicted, batch)",
        "self._bce(predicted.detach(), batch)",
        "tests/prior/test_objectives.py",
    ),
    Mutant(
        "BCE term removed",
        "embedprior/prior/losses.py",
        'named["bce"] = config.bce * self._bce(predicted, batch)',
        "pass",
        "tests/prior/test_objectives.py",
    ),
    Mutant(
        "contrast with CTs of the same patient",
        "embedprior/prior/losses.py",
        ".square() * is_rival",
        ".square()",
        "tests/prior/test_terms.py",
    ),
    Mutant(
        "padding tokens are looked at",
        "embedprior/prior/network.py",
        "mask = (mask & seen) | torch.eye(",
        "mask = mask.expand(len(seen), 1, -1, -1) | torch.eye(",
        "tests/prior/test_network.py",
    ),
    Mutant(
        "every sample of a case gets the same noise",
        "embedprior/prior/samplers.py",
        "keyed_normal(noise, m, cases, shape)",
        "keyed_normal(noise, 0, cases, shape)",
        "tests/prior/test_training.py",
    ),
    Mutant(
        "the regression is left out of what is sampled",
        "embedprior/prior/samplers.py",
        "found = found if centre is None else found + centre",
        "found = found",
        "tests/prior/test_regression.py",
    ),
    Mutant(
        "a dropped condition keeps its regression",
        "embedprior/prior/trainer.py",
        "data.given.centre[rows] * ~drop[:, :1]",
        "data.given.centre[rows]",
        "tests/prior/test_regression.py",
    ),
    Mutant(
        "a score depends on its row",
        "embedprior/students/prior_method.py",
        "self._drawn(cases, [0] * len(cases))",
        "self._drawn(cases, range(len(cases)))",
        "tests/students/test_prior_method.py",
    ),
    Mutant(
        "the variance table is used at any guidance",
        "embedprior/prior/model.py",
        "if table.guidance != guidance:",
        "if False:",
        "tests/prior/test_training.py",
    ),
    Mutant(
        "pairs of the other kind of radiograph train the prior",
        "embedprior/prior/data.py",
        "kept = pairs[modality == config.source.upper()]",
        "kept = pairs",
        "tests/prior/test_main.py",
    ),
    Mutant(
        "CT scaler refitted when fine-tuning",
        "embedprior/prior/setup.py",
        "start.target_scaler,\n            {**start",
        "Standardiser.fit(train.target),\n            {**start",
        "tests/prior/test_training.py",
    ),
    Mutant(
        "DRR flipped left to right",
        "embedprior/imaging/drr/geometry.py",
        '"PA": ((1, 0, 0), (0, 0, -1), (0, -1, 0)),',
        '"PA": ((-1, 0, 0), (0, 0, -1), (0, -1, 0)),',
        "tests/imaging/drr/test_planesweep.py",
    ),
    Mutant(
        "several exams of a patient taken as independent",
        "embedprior/evidence/delong.py",
        'patient = None if clusters is None else _codes(clusters, positive.size, "clusters")',
        "patient = None",
        "tests/evidence/test_delong.py",
    ),
    Mutant(
        "negatives drawn before positives",
        "embedprior/cohort/splits.py",
        "for value in (1, 0)]",
        "for value in (0, 1)]",
        "tests/cohort/test_splits.py",
    ),
    Mutant(
        "teacher: the max pool sees the padding",
        "embedprior/teachers/sequence.py",
        "outputs.masked_fill(~real, -torch.inf).amax(dim=1)",
        "outputs.amax(dim=1)",
        "tests/teachers/test_sequence.py",
    ),
    Mutant(
        "teacher: a CT without a label is a negative",
        "embedprior/teachers/train.py",
        "rows = np.flatnonzero(~np.isnan(self.label))",
        "rows = np.arange(len(self.label))",
        "tests/teachers/test_training.py",
    ),
    Mutant(
        "teacher: patients it has seen may be scored",
        "embedprior/teachers/teacher.py",
        "        if both:\n",
        "        if False:\n",
        "tests/teachers/test_training.py",
    ),
    Mutant(
        "teacher: the last step is kept, not the best",
        "embedprior/nn/training.py",
        "    if looks:\n        network.load_state_dict(best)\n",
        "",
        "tests/teachers/test_training.py",
    ),
    Mutant(
        "generate: noise keyed by the place in the batch",
        "embedprior/prior/generate.py",
        "keys = [noise_key(exam) for exam in ids]\n    drawn",
        "keys = list(range(len(ids)))\n    drawn",
        "tests/prior/test_generate.py",
    ),
    Mutant(
        "generate: the head of the mean for the mean of the head",
        "embedprior/prior/generate.py",
        "columns = [chance[:, 0], chance.mean(axis=1),",
        'columns = [chance[:, 0], _probability(head, made["mean"]),',
        "tests/prior/test_generate.py",
    ),
    Mutant(
        "quality: generated and real of the same patients",
        "embedprior/prior/metrics.py",
        "distance(rows[first], real[~first])",
        "distance(rows[first], real[first])",
        "tests/prior/test_quality.py",
    ),
    Mutant(
        "quality: ties rank first",
        "embedprior/prior/metrics.py",
        "1.0 + above + 0.5 * level",
        "1.0 + above + 0.0 * level",
        "tests/prior/test_quality.py",
    ),
    Mutant(
        "a held-out patient's partner may train",
        "embedprior/cohort/splits.py",
        "if p in chosen or g not in groups}",
        "if True}",
        "tests/cohort/test_splits.py",
    ),
    Mutant(
        "an encoder may have seen held-out patients",
        "embedprior/study/prepare.py",
        "    refuse_seen(table, exams, targets, seen)\n",
        "",
        "tests/study/test_study.py",
    ),
    Mutant(
        "results of two plans are mixed",
        "embedprior/study/plan.py",
        'if before.get("hash") == plan["hash"]:',
        "if True:",
        "tests/study/test_plan.py",
    ),
    Mutant(
        "the teacher learns from the held-out patients' CTs",
        "embedprior/study/inputs.py",
        'in_train = _may_train(design, one, ct["group_id"]) & usable',
        "in_train = usable",
        "tests/study/test_study.py",
    ),
    Mutant(
        "pretraining on DRRs of held-out groups",
        "embedprior/study/inputs.py",
        "in_train = _may_train(design, one, group)",
        "in_train = np.ones(len(group), dtype=bool)",
        "tests/study/test_study.py",
    ),
    Mutant(
        "the study's CT head ignores the class balance",
        "embedprior/study/runner.py",
        "settings, own_seed, balance=config.balance",
        "settings, own_seed",
        "tests/study/test_study.py::test_class_balance_reaches_every_row_that_trains_a_classifier",
    ),
    Mutant(
        "the CT head's loss is not weighed by class",
        "embedprior/nn/training.py",
        "counted = known * weight[rows]",
        "counted = known",
        "tests/teachers/test_head.py",
    ),
    Mutant(
        "CTs of a patient of two sites train while one of them is held out",
        "embedprior/study/inputs.py",
        "    if design.site_decides:\n",
        "    if False:\n",
        "tests/study/test_study.py",
    ),
    Mutant(
        "patients of the external cohort may train",
        "embedprior/study/caches.py",
        "    if shared:\n",
        "    if False:\n",
        "tests/study/test_external.py",
    ),
    Mutant(
        "external embeddings of any encoder are taken",
        "embedprior/study/caches.py",
        "if like else {}",
        "if False else {}",
        "tests/study/test_external.py",
    ),
    Mutant(
        "a sweep's settings are each judged alone",
        "embedprior/study/hypotheses.py",
        "    if config.sweep:\n",
        "    if False:\n",
        "tests/study/test_study.py",
    ),
    Mutant(
        "scans without whole lungs are paired for pretraining",
        "embedprior/imaging/drr/dataset.py",
        "if result.complete or incomplete:",
        "if True:",
        "tests/cli/test_drr.py::test_incomplete_lungs_are_rendered_marked_and_left_without_a_pair",
    ),
    Mutant(
        "a series found twice is rendered twice",
        "embedprior/imaging/drr/dataset.py",
        'same = next((first[n] for n in names if n in first), "")',
        'same = ""',
        "tests/imaging/drr/test_sources.py",
    ),
    Mutant(
        "jittered poses stay straight",
        "embedprior/imaging/drr/render.py",
        "draw[0] * config.max_angle_deg",
        "draw[0] * 0",
        "tests/imaging/drr/test_job.py",
    ),
    Mutant(
        "plane sweep reads a band one row off",
        "embedprior/imaging/drr/planesweep.py",
        "(1 - 2 * top) / rows - 1",
        "(3 - 2 * top) / rows - 1",
        "tests/imaging/drr/test_planesweep.py",
    ),
    Mutant(
        "planted lesion reported at a mirrored place",
        "embedprior/phantom/implant.py",
        "np.array([*middle[::-1], 1.0])",
        "np.array([*middle, 1.0])",
        "tests/phantom/test_implant.py",
    ),
    Mutant(
        "empty rows beside the patient set the exposure",
        "embedprior/imaging/drr/display.py",
        "middle[middle > OPEN_FIELD]",
        "middle[middle > -1e9]",
        "tests/imaging/drr/test_appearance.py",
    ),
    Mutant(
        "a flipped radiograph beside a CT that is not",
        "embedprior/students/training.py",
        "ct = torch.where(flipped[:, None], data.mirrored[0][rows], ct)",
        "pass",
        "tests/students/test_training.py",
    ),
    Mutant(
        "label terms see unlabelled cases only by chance",
        "embedprior/students/training.py",
        "labelled = _some(known, budget, draws)",
        "labelled = _some(everyone, budget, draws)",
        "tests/students/test_training.py",
    ),
    Mutant(
        "the last step kept instead of the best",
        "embedprior/students/training.py",
        "both.load_state_dict(best)",
        "pass",
        "tests/students/test_training.py",
    ),
    Mutant(
        "balanced sampling left out",
        "embedprior/students/training.py",
        "labelled = torch.where(coin, picks[1], picks[0])",
        "labelled = _some(known, budget, draws)",
        "tests/students/test_training.py",
    ),
    Mutant(
        "rows of one patient as negatives",
        "embedprior/students/losses.py",
        "cosines.masked_fill(same_patient(patient) & ~own, -torch.inf)",
        "cosines",
        "tests/students/test_losses.py",
    ),
    Mutant(
        "a signed cosine taken for orthogonality",
        "embedprior/students/losses.py",
        "F.cosine_similarity(a, b, dim=1).abs().mean()",
        "F.cosine_similarity(a, b, dim=1).mean()",
        "tests/students/test_losses.py",
    ),
    Mutant(
        "DisCoM-KD's released domain targets: all of one modality",
        "embedprior/students/feature_kd.py",
        "torch.full((len(pairs.label),), side)",
        "torch.full((len(pairs.label),), CXR)",
        "tests/students/test_discom.py",
    ),
    Mutant(
        "the reversed gradient not reversed",
        "embedprior/students/feature_kd.py",
        "return -ctx.strength * gradient, None",
        "return ctx.strength * gradient, None",
        "tests/students/test_discom.py",
    ),
    Mutant(
        "permuted labels checked on the true ones",
        "embedprior/students/controls.py",
        '_permuted(data.target.val, seed, "val")',
        "data.target.val",
        "tests/students/test_controls.py",
    ),
    Mutant(
        "an option lets a student see CT",
        "embedprior/students/config.py",
        "if f.init and f.name not in FIXED",
        "if f.init",
        "tests/students/test_registry.py",
    ),
    Mutant(
        "the longer control trains no longer",
        "embedprior/students/logit_kd.py",
        '{"steps": self.times * self.budget.fit.steps}',
        '{"steps": self.budget.fit.steps}',
        "tests/students/test_controls.py",
    ),
    Mutant(
        "shuffled control not shuffled",
        "embedprior/students/student.py",
        "return tuple(shuffled_stage(s, seed) for s in used) if self.shuffled else used",
        "return used",
        "tests/students/test_features.py",
    ),
    Mutant(
        "slices in the order of their numbers",
        "embedprior/imaging/dicom_series.py",
        'sequence = np.argsort(positions @ normal, kind="stable")',
        "sequence = np.arange(len(headers))",
        "tests/imaging/test_dicom_series.py",
    ),
    Mutant(
        "rescale applied twice to compressed slices",
        "embedprior/imaging/dicom_pixels.py",
        "            return decoded\n",
        "            return decoded * (header.slope or 1) + (header.intercept or 0)\n",
        "tests/imaging/test_dicom_series.py",
    ),
    Mutant(
        "a missing slice goes unnoticed",
        "embedprior/imaging/dicom_series.py",
        "    if holes.size:\n",
        "    if False:\n",
        "tests/imaging/test_dicom_series.py",
    ),
    Mutant(
        "gantry tilt goes unnoticed",
        "embedprior/imaging/dicom_series.py",
        "    elif tilt.degrees > TILT_DEG:\n",
        "    elif False:\n",
        "tests/imaging/test_dicom_series.py",
    ),
    Mutant(
        "the first of several series is taken",
        "embedprior/imaging/dicom_series.py",
        'if rule == "only" and len(candidates) > 1:',
        "if False:",
        "tests/imaging/test_dicom_series.py",
    ),
    Mutant(
        "any number counts as Hounsfield units",
        "embedprior/imaging/audit.py",
        "    if air < LEAST_SHARE:\n",
        "    if False:\n",
        "tests/imaging/test_volume.py",
    ),
    Mutant(
        "reorienting moves the patient",
        "embedprior/imaging/volume.py",
        "if signs[world] < 0 else 0",
        "if signs[world] > 0 else 0",
        "tests/imaging/test_volume.py",
    ),
    Mutant(
        "resampling aligned by voxel centres at the corner",
        "embedprior/imaging/resampling.py",
        "first = [float(edge) + s / 2 for edge, s in zip(low, spacing_mm, strict=True)]",
        "first = [float(v) for v in canonical(volume).origin_mm]",
        "tests/imaging/test_resampling.py",
    ),
    Mutant(
        "lungs that touch the end of the scan are opened away",
        "embedprior/imaging/lungs.py",
        'wide = np.pad(mask, 2, mode="edge")',
        "wide = np.pad(mask, 2)",
        "tests/imaging/test_lungs.py",
    ),
    Mutant(
        "a mask on another grid is taken",
        "embedprior/imaging/preprocess.py",
        "if mask.shape != volume.shape or not np.allclose(mask.affine, volume.affine, atol=1e-2):",
        "if mask.shape != volume.shape:",
        "tests/imaging/test_profiles.py",
    ),
    Mutant(
        "slices of a tilted gantry are moved the wrong way",
        "embedprior/imaging/volume.py",
        "place = np.arange(first, first + wide) - start",
        "place = np.arange(first, first + wide) + start",
        "tests/imaging/test_dicom_series.py",
    ),
    Mutant(
        "PixelSpacing is read as (columns, rows)",
        "embedprior/imaging/dicom_series.py",
        "between_rows, between_columns = headers[0].spacing_yx",
        "between_columns, between_rows = headers[0].spacing_yx",
        "tests/imaging/test_dicom_series.py",
    ),
    Mutant(
        "every frame of an enhanced CT is rescaled as the first one",
        "embedprior/imaging/dicom_header.py",
        'slope=_number(value("PixelValueTransformationSequence", "RescaleSlope")),',
        'slope=_number(value("PixelValueTransformationSequence", "RescaleSlope", (groups[0],))),',
        "tests/imaging/test_enhanced_ct.py",
    ),
    Mutant(
        "a NIfTI whose two orientations disagree is read by one of them",
        "embedprior/imaging/audit.py",
        "if turned <= TURN_DEG and scaled <= SCALE_SHARE:",
        "if scaled <= SCALE_SHARE:",
        "tests/imaging/test_image_header.py",
    ),
    Mutant(
        "the lung network joins the level's own maps before what came up",
        "embedprior/imaging/lung_network.py",
        'torch.cat([step["up"](pixels), kept.pop()], dim=1)',
        'torch.cat([kept.pop(), step["up"](pixels)], dim=1)',
        "tests/imaging/test_lung_network.py",
    ),
    Mutant(
        "a profile's key holds the path of its lung weights, not their hash",
        "embedprior/imaging/preprocess.py",
        'record["lungs"] = f"sha256:{hash_file(lung_weights(profile.lungs))}"',
        "lung_weights(profile.lungs)",
        "tests/imaging/test_lung_network.py",
    ),
    Mutant(
        "MONOCHROME1 is shown as it is stored",
        "embedprior/imaging/radiographs.py",
        "    if flipped:\n",
        "    if False:\n",
        "tests/imaging/test_radiographs.py",
    ),
    Mutant(
        "a picture's error names its folder",
        "embedprior/imaging/files.py",
        "not a picture, or damaged ({kind})",
        "{error}",
        "tests/imaging/test_fuzz.py",
    ),
    Mutant(
        "a forked process inherits a taken guard",
        "embedprior/runs/locks.py",
        "os.register_at_fork(after_in_child=_HEART.renew)",
        "",
        "tests/runs/test_locks.py",
    ),
    Mutant(
        "a dependency is not declared",
        "pyproject.toml",
        '  "psutil>=5.9",\n',
        "",
        "tests/test_wheel.py",
    ),
    Mutant(
        "a typed setting forgets the rest of its section",
        "embedprior/config.py",
        "held.model_dump(exclude_unset=True) if isinstance(held, BaseModel) else {}",
        "{}",
        "tests/test_options.py",
    ),
)


def survives(mutant: Mutant) -> tuple[bool, str]:
    """Return whether the tests still pass with the fault in place, and what was seen."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        copy.mkdir()
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.is_file():
                shutil.copy(source, copy / name)
        target = copy / mutant.file
        text = target.read_text()
        if text.count(mutant.before) != 1:
            return True, f"does not apply: found {text.count(mutant.before)} times"
        target.write_text(text.replace(mutant.before, mutant.after))
        (Path(folder) / "shared").symlink_to(ROOT.parent / "shared")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutant.tests]
        environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(command, cwd=copy, capture_output=True, text=True, env=environment, check=False)
        failed = [line for line in ran.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        seen = failed[0].split(" - ")[0].removeprefix("FAILED ") if failed else ran.stdout.strip().splitlines()[-1]
        # Exit code 1 is "a test failed"; anything else (collection error, nothing run) proves nothing.
        return ran.returncode != 1, seen


def main() -> int:
    """Apply every fault and print what caught it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="run the faults whose name contains this")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if not options.only or options.only in m.name]
    alive = 0
    for mutant in chosen:
        lives, seen = survives(mutant)
        alive += lives
        print(f"{'SURVIVED' if lives else 'caught  '}  {mutant.name:<48} {seen}", flush=True)
    print(f"{len(chosen) - alive} of {len(chosen)} faults caught")
    return 1 if alive or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
