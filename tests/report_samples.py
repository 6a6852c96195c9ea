"""A report made up for tests: no figure in it was measured."""

from __future__ import annotations

import numpy as np

from iekd.deploy import results
from iekd.deploy.statistics import percentile, wilson


def sample_report(
    classes: list[str] | None = None, *, kept: bool = True, names: tuple[str, str] = ("big", "small")
) -> results.Report:
    """A report with ``classes`` and model names of any kind."""
    classes = classes or [f"class {number}" for number in range(10)]
    random = np.random.default_rng(0)
    models = [
        _model(role, name, classes, random, middle)
        for role, name, middle in zip(("teacher", "student"), names, (30.0, 2.0), strict=True)
    ]
    retained = results.Interval(value=0.991 if kept else 0.93, low=0.92, high=1.01)
    return results.Report(
        iekd_version="0.0.0",
        created="2000-01-01T00:00:00+00:00",
        command="iekd-compress --teacher big --student small",
        config={"teacher": names[0], "student": names[1], "epochs": 3},
        dataset=results.Dataset(
            name="sample", classes=classes, train_images=100, val_images=50, skipped_images=1, digest="0" * 64
        ),
        teacher=models[0],
        student=models[1],
        verdict=results.Verdict(
            kept=kept,
            retained=retained,
            speedup=results.Interval(value=15, low=14.5, high=15.5),
            min_retained=0.97,
            max_latency_ms=None,
            misses=[] if kept else ["too little"],
            sentence="It was kept." if kept else "It was missed.",
        ),
        stages=[results.Stage(name="teacher", seconds=100, epochs=3, note="accuracy 99 %")],
        curves=[
            results.Curve(stage=stage, name=name, values=[3.0, 2.0, 1.5])
            for stage in ("teacher", "student")
            for name in ("task", "loss", "lr")
        ],
        fingerprint=results.Fingerprint(
            device="a machine",
            cores=2,
            threads=2,
            memory_gib=4,
            os="Linux",
            python="3.11",
            packages={"torch": "2"},
            clocks="unknown",
        ),
        notes=["a note"],
    )


def _model(role: str, name: str, classes: list[str], random: np.random.Generator, middle: float) -> results.ModelResult:
    values = random.lognormal(np.log(middle), 0.05, 3000)
    latency = results.Latency(
        batch=1,
        iterations=len(values),
        warmup_seconds=0.2,
        measured_seconds=3,
        minimum=values.min(),
        mean=values.mean(),
        median=percentile(values, 50),
        p90=percentile(values, 90),
        p95=percentile(values, 95),
        p99=percentile(values, 99),
        maximum=values.max(),
        cv=0.05,
        policy="as told",
        trace=f"benchmark/latency-{role}.npz",
        sample=values[:2000].tolist(),
    )
    per_class = [
        results.ClassAccuracy(name=text, correct=number % 5 + 1, total=5) for number, text in enumerate(classes)
    ]
    correct, total = sum(entry.correct for entry in per_class), 5 * len(classes)
    return results.ModelResult(
        role=role,
        name=name,
        file=f"{role}.onnx",
        sha256="0" * 64,
        size_bytes=10_000_000,
        parameters=1_000_000,
        macs=50_000_000,
        precision="fp32",
        backend="a runtime",
        input_shape=[3, 64, 64],
        accuracy=results.Accuracy(top1=wilson(correct, total), correct=correct, total=total, per_class=per_class),
        latency=latency,
        verification=results.Verification(
            images=64, largest_difference=1e-5, relative_difference=1e-6, top1_agreement=1, tolerance=1e-3
        ),
    )
