"""Names of detectron2's ResNet, in models whose backbone it is or has as body."""

from __future__ import annotations

BODY = r"^(backbone\.(?:body\.)?)"
# Rules for `fastseg.checkpoints.keys.renamed`; they begin with our name of the backbone.
RULES = (
    (BODY + r"stem\.", r"\1"),
    (BODY + r"(.*\.)?conv(\d)\.norm\.", r"\1\2bn\3."),
    (BODY + r"(.*)shortcut\.norm\.", r"\1\2downsample.1."),
    (BODY + r"(.*)shortcut\.", r"\1\2downsample.0."),
    *((BODY + rf"res{stage + 1}\.", rf"\1layer{stage}.") for stage in (1, 2, 3, 4)),
)
