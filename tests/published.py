"""Benchmarks as they are published, a few rows each: the real schema, names and oddities, made-up content.

Every picture has pixels of its own, so that no two items are the same.
"""

import io
import json
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pictures

SEEN, UNSEEN = "n01498041", "n01514859"
"""A class of ImageNet-R that the pool has (stingray), and one that it has not (hen)."""


def picture(number, size=(40, 30), mode="RGB"):
    """A picture of noise that its number decides."""
    width, height = size
    rng = np.random.Generator(np.random.PCG64(number))
    return Pictures.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def encoded(number, size=(40, 30), kind="JPEG", mode="RGB"):
    """The bytes of `picture`."""
    file = io.BytesIO()
    picture(number, size, mode).save(file, kind)
    return file.getvalue()


def put(path, data):
    """Writes bytes, making the folders above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def parquet(path, rows, features):
    """A Parquet file as the hub has it: with the features in its schema."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=Features(features)).to_parquet(str(path))
    return path.parent.parent


def imagenet_r(folder: Path, each=4) -> Path:
    """The unpacked archive: a folder for each wnid, files by style; one class is none of the paper's."""
    for at, wnid in enumerate((SEEN, UNSEEN, "n01443537")):
        for number in range(each):
            put(folder / "imagenet-r" / wnid / f"cartoon_{number}.jpg", encoded(100 * at + number))
    put(folder / "imagenet-r" / "README.txt", b"words")
    return folder


def imagenet_r_hub(folder: Path, each=4) -> Path:
    """A download of axiong/imagenet-r."""
    rows = [
        {
            "image": {"bytes": encoded(100 * at + number), "path": f"{name}_{number}.jpg"},
            "wnid": wnid,
            "class_name": name,
        }
        for number in range(each)
        for at, (wnid, name) in enumerate(((SEEN, "stingray"), (UNSEEN, "hen"), ("n01443537", "goldfish")))
    ]
    features = {"image": Image(), "wnid": Value("string"), "class_name": Value("string")}
    return parquet(folder / "data" / "test-00000-of-00001.parquet", rows, features)


def imagenet_a(folder: Path) -> Path:
    """The unpacked archive: names with spaces that tell a classifier's wrong guess, three extensions."""
    for at, (wnid, name) in enumerate(
        (
            (SEEN, "0.000116_digital clock _ digital clock_0.865662.jpg"),
            (SEEN, "0.000348_cucumber _ cucumber_0.9130136.jpeg"),
            ("n01580077", "0.006116_stick insect _ stick insect_0.876.JPEG"),
            ("n01580077", "0.000001_fountain _ fountain_0.5.jpg"),
            ("n01531178", "0.1_goldfinch_0.5.jpg"),
        )
    ):
        put(folder / "imagenet-a" / wnid / name, encoded(at))
    return folder


def imagenet_a_hub(folder: Path, names=(SEEN, "n01531178", "n01580077")) -> Path:
    """A download of barkermrl/imagenet-a: labels whose names are wnids."""
    rows = [{"image": {"bytes": encoded(at), "path": f"{at}.jpg"}, "label": at % 3} for at in range(6)]
    features = {"image": Image(), "label": ClassLabel(names=list(names))}
    return parquet(folder / "data" / "train-00000-of-00001.parquet", rows, features)


def imagenet_val(folder: Path, flat=False, solution=True) -> Path:
    """ImageNet's folder with val/ in it: sorted by wnid, or flat beside Kaggle's list."""
    lines = ["ImageId,PredictionString"]
    for number, wnid in enumerate((SEEN, "n01560419", SEEN, "n01440764"), 1):
        name = f"ILSVRC2012_val_{number:08}"
        place = folder / "val" if flat else folder / "val" / wnid
        put(place / f"{name}.JPEG", encoded(number))
        lines.append(f"{name},{wnid} 10 20 30 40 {wnid} 1 2 3 4")
    if flat and solution:
        (folder / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")
    return folder


def imagenet_val_hub(folder: Path) -> Path:
    """A download of ILSVRC/imagenet-1k: 1,000 labels, whose names are the synsets' synonyms."""
    features = {"image": Image(), "label": ClassLabel(num_classes=1000)}
    rows = [
        {"image": {"bytes": encoded(at), "path": f"ILSVRC2012_val_{at:08}.JPEG"}, "label": label}
        for at, label in enumerate((6, 0, 16, 6))
    ]
    return parquet(folder / "data" / "validation-00000-of-00001.parquet", rows, features)


def imagenet_train(folder: Path, each=101, wnids=(SEEN, "n01560419")) -> Path:
    """ImageNet's folder with train/ in it."""
    for at, wnid in enumerate(wnids):
        for number in range(each):
            path = folder / "train" / wnid / f"{wnid}_{number}.JPEG"
            put(path, encoded(1000 * at + number, (8, 8)))
    return folder


def paper_list(folder: Path, stem: str, images: list[tuple[str, str]], grpo=False) -> Path:
    """A list of the paper's release: (path below train, word) each; paths are absolute there."""
    prompt = "<image>Please provide the object name in the image. Output the answer using one word."
    rows = []
    for name, word in images:
        path = f"/data/dataset/Imagenet/train/{name}"
        if grpo:
            rows.append({"problem": prompt, "solution": f"<answer>{word}</answer>", "image": path})
        else:
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": word}]
            rows.append({"messages": turns, "images": [path]})
    path = folder / f"{stem}.json"
    path.write_text(json.dumps(rows))
    return path
