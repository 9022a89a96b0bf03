"""Names of COCO's categories."""

from fastseg.categories import COCO

_BY_ID = dict(zip(COCO.ids, COCO.names, strict=True))
# For models whose label is the category id. Ids without a category are "N/A"; 0 is background.
COCO_CLASS_NAMES = (
    "background",
    *(_BY_ID.get(category, "N/A") for category in range(1, 1 + max(_BY_ID))),
)
# Names without background and gaps, for models that number the categories 0 to 79.
COCO_CATEGORY_NAMES = COCO.names
