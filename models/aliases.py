"""Short names for networks, importable without torch so that ``iekd-compress models`` answers at once."""

from __future__ import annotations

from typing import NamedTuple


class Family(NamedTuple):
    """A short name, the timm model it stands for, what that model is good for, and timm's other widths of it."""

    alias: str
    timm_name: str
    note: str
    widths: tuple[str, ...] = ()


_MOBILENETV2 = tuple(f"mobilenetv2_{width}" for width in ("035", "050", "075", "140"))


STUDENTS = (
    Family("mobilenet", "mobilenetv2_100", "the safe choice: quantises well, fast everywhere", _MOBILENETV2),
    Family("mobilenetv2", "mobilenetv2_100", "the same", _MOBILENETV2),
    Family(
        "mobilenetv3",
        "mobilenetv3_large_100",
        "fewer MACs, squeeze-and-excite; INT8 gains little",
        ("mobilenetv3_large_075",),
    ),
    Family(
        "mobilenetv3-small",
        "mobilenetv3_small_100",
        "the smallest of the family",
        ("mobilenetv3_small_050", "mobilenetv3_small_075"),
    ),
    Family(
        "mobilenetv4",
        "mobilenetv4_conv_small",
        "no squeeze-and-excite, made for phones and boards",
        ("mobilenetv4_conv_small_035", "mobilenetv4_conv_small_050"),
    ),
    Family("efficientnet", "efficientnet_b0", "more accurate, slower; fragile in INT8"),
    Family("efficientnet-lite", "efficientnet_lite0", "efficientnet without what quantises badly"),
    Family("ghostnet", "ghostnet_100", "cheap convolutions", ("ghostnet_050", "ghostnet_130")),
    Family("regnet", "regnety_002", "group convolutions"),
    Family("repvgg", "repvgg_a0", "plain 3x3 convolutions once deployed: likes GPUs"),
    Family("resnet18", "resnet18", "large but regular: INT8 on a GPU likes it"),
    Family("deit-tiny", "deit_tiny_patch16_224", "a transformer student"),
    Family("vit-tiny", "vit_tiny_patch16_224", "a transformer student"),
)

TEACHERS = (
    Family("resnet", "resnet50", "the usual teacher"),
    Family("resnet34", "resnet34", "lighter to train from scratch"),
    Family("convnext", "convnext_tiny", "stronger, slower"),
    Family("vit", "vit_small_patch16_224", "a transformer teacher"),
    Family("swin", "swin_tiny_patch4_window7_224", "a hierarchical transformer"),
)

ALIASES = {family.alias: family.timm_name for family in (*TEACHERS, *STUDENTS)}
