"""The classes of well-known data sets, in the order in which models number them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Categories:
    """A data set's classes by label.

    Args:
        names: name of each label.
        ids: id of each label in the data set's annotation files.
        things: labels of countable objects; the others are stuff, such as sky.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    things: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    def only_things(self) -> Categories:
        """The things alone, numbered anew, as models of instances do."""
        names = tuple(self.names[label] for label in self.things)
        ids = tuple(self.ids[label] for label in self.things)
        return Categories(names, ids, tuple(range(len(names))))


def by_count(num_classes: int) -> Categories | None:
    """The data set that a model of so many classes was most likely trained on."""
    return next((one for one in DATA_SETS if len(one) == num_classes), None)


def by_names(names: Sequence[str] | None) -> Categories | None:
    """The data set whose classes have exactly these names."""
    return next((one for one in DATA_SETS if one.names == tuple(names or ())), None)


def checked_names(
    names: Sequence[str] | None, num_classes: int, counted: str = ""
) -> tuple[str, ...] | None:
    """Names of a model's classes; a ValueError if there are more or fewer or it is one text.

    Args:
        names: one for each class, or None.
        num_classes: number of classes, at least 1.
        counted: what the message says of that number.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if isinstance(names, str):
        raise ValueError(f"class_names must be a name for each class, got {names!r}")
    if names is not None and len(names) != num_classes:
        raise ValueError(f"class_names has {len(names)} names for {num_classes} classes{counted}")
    return None if names is None else tuple(names)


def class_name(label: int, names: Sequence[str] | None) -> str:
    """Name of a label, "class 3" where there is none for label 3."""
    return names[label] if names is not None and 0 <= label < len(names) else f"class {label}"


def category_id(label: int, category_ids: Sequence[int] | None) -> int:
    """Category id of a label: the label itself where `category_ids` is None."""
    if category_ids is None:
        return label
    if not 0 <= label < len(category_ids):
        raise ValueError(f"category_ids has {len(category_ids)} numbers, none for label {label}")
    return int(category_ids[label])


def _parsed(text: str) -> Categories:
    """Reads `name`, `name*` for a thing, and `id name` where ids are not the labels."""
    found = re.findall(r"(?:(\d+) )?([^\s\d,*][^,*\n]*)(\*?)", text)
    names = tuple(name for _, name, _ in found)
    ids = tuple(int(number or label) for label, (number, _, _) in enumerate(found))
    return Categories(names, ids, tuple(n for n, (_, _, star) in enumerate(found) if star))


# Things and stuff of the panoptic annotations.
COCO_PANOPTIC = _parsed("""\
1 person*, 2 bicycle*, 3 car*, 4 motorcycle*, 5 airplane*, 6 bus*, 7 train*, 8 truck*, 9 boat*,
10 traffic light*, 11 fire hydrant*, 13 stop sign*, 14 parking meter*, 15 bench*, 16 bird*,
17 cat*, 18 dog*, 19 horse*, 20 sheep*, 21 cow*, 22 elephant*, 23 bear*, 24 zebra*, 25 giraffe*,
27 backpack*, 28 umbrella*, 31 handbag*, 32 tie*, 33 suitcase*, 34 frisbee*, 35 skis*,
36 snowboard*, 37 sports ball*, 38 kite*, 39 baseball bat*, 40 baseball glove*, 41 skateboard*,
42 surfboard*, 43 tennis racket*, 44 bottle*, 46 wine glass*, 47 cup*, 48 fork*, 49 knife*,
50 spoon*, 51 bowl*, 52 banana*, 53 apple*, 54 sandwich*, 55 orange*, 56 broccoli*, 57 carrot*,
58 hot dog*, 59 pizza*, 60 donut*, 61 cake*, 62 chair*, 63 couch*, 64 potted plant*, 65 bed*,
67 dining table*, 70 toilet*, 72 tv*, 73 laptop*, 74 mouse*, 75 remote*, 76 keyboard*,
77 cell phone*, 78 microwave*, 79 oven*, 80 toaster*, 81 sink*, 82 refrigerator*, 84 book*,
85 clock*, 86 vase*, 87 scissors*, 88 teddy bear*, 89 hair drier*, 90 toothbrush*,
92 banner, 93 blanket, 95 bridge, 100 cardboard, 107 counter, 109 curtain, 112 door-stuff,
118 floor-wood, 119 flower, 122 fruit, 125 gravel, 128 house, 130 light, 133 mirror-stuff,
138 net, 141 pillow, 144 platform, 145 playingfield, 147 railroad, 148 river, 149 road, 151 roof,
154 sand, 155 sea, 156 shelf, 159 snow, 161 stairs, 166 tent, 168 towel, 171 wall-brick,
175 wall-stone, 176 wall-tile, 177 wall-wood, 178 water-other, 180 window-blind,
181 window-other, 184 tree-merged, 185 fence-merged, 186 ceiling-merged, 187 sky-other-merged,
188 cabinet-merged, 189 table-merged, 190 floor-other-merged, 191 pavement-merged,
192 mountain-merged, 193 grass-merged, 194 dirt-merged, 195 paper-merged, 196 food-other-merged,
197 building-other-merged, 198 rock-merged, 199 wall-other-merged, 200 rug-merged
""")

COCO = COCO_PANOPTIC.only_things()

# The 150 classes of the scene parsing challenge; things as in the original Mask2Former.
ADE20K = _parsed("""\
wall, building, sky, floor, tree, ceiling, road, bed*, window*, grass, cabinet*, sidewalk,
person*, earth, door*, table*, mountain, plant, curtain*, chair*, car*, water, painting*, sofa*,
shelf*, house, sea, mirror*, rug, field, armchair*, seat*, fence*, desk*, rock, wardrobe*, lamp*,
tub*, rail*, cushion*, base, box*, column*, signboard*, chest of drawers*, counter*, sand, sink*,
skyscraper, fireplace*, refrigerator*, grandstand, path, stairs*, runway, case*, pool table*,
pillow*, screen door*, stairway, river, bridge, bookcase*, blind, coffee table*, toilet*, flower*,
book*, hill, bench*, countertop*, stove*, palm*, kitchen island*, computer*, swivel chair*, boat*,
bar, arcade machine*, hovel, bus*, towel*, light*, truck*, tower, chandelier*, awning*,
street lamp*, booth*, tv*, airplane*, dirt track, clothes*, pole*, land, bannister*, escalator,
ottoman*, bottle*, buffet, poster, stage, van*, ship*, fountain*, conveyer belt, canopy, washer*,
plaything*, pool, stool*, barrel*, basket*, falls, tent, bag*, minibike*, cradle, oven*, ball*,
food*, step*, tank, trade name*, microwave*, pot*, animal*, bicycle*, lake, dishwasher*, screen*,
blanket, sculpture*, hood*, sconce*, vase*, traffic light*, tray*, trash can*, fan*, pier,
crt screen, plate*, monitor*, bulletin board*, shower, radiator*, glass*, clock*, flag*
""")

ADE20K_INSTANCES = ADE20K.only_things()

# The 19 evaluated classes; ids are Cityscapes' own, not its train ids, which are the labels.
CITYSCAPES = _parsed("""\
7 road, 8 sidewalk, 11 building, 12 wall, 13 fence, 17 pole, 19 traffic light, 20 traffic sign,
21 vegetation, 22 terrain, 23 sky, 24 person*, 25 rider*, 26 car*, 27 truck*, 28 bus*, 31 train*,
32 motorcycle*, 33 bicycle*
""")

CITYSCAPES_INSTANCES = CITYSCAPES.only_things()

DATA_SETS = (COCO, COCO_PANOPTIC, ADE20K, ADE20K_INSTANCES, CITYSCAPES, CITYSCAPES_INSTANCES)
