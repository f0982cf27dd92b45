"""ImageNet, RefCOCO, Ref-L4 and LISA as they are published, a few rows each, with made-up content.

    python tests/published.py FOLDER

writes FOLDER/TASK, each in the real schema with its names and oddities, and prepares it in FOLDER/data.
Every picture has pixels of its own, so that no two items are the same.
"""

import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value, disable_progress_bars
from PIL import Image as Pictures

disable_progress_bars()

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


def imagenet_val_hub(folder: Path, names: list[str] | None = None) -> Path:
    """A download of ILSVRC/imagenet-1k: 1,000 labels, whose names are the synonyms (here numbers)."""
    label = ClassLabel(num_classes=1000) if names is None else ClassLabel(names=names)
    features = {"image": Image(), "label": label}
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


def vlm_r1_row(number, size=(64, 48), dataset="refcoco", plus_one=True):
    """A row of VLM-R1's rec_jsons_processed; a solution ends one pixel further than COCO's box."""
    x, y, w, h = 4.0 + number % 30, 6.0, 20.5, 16.25
    box = [x, y, x + w + plus_one, y + h + plus_one]
    return {
        "height": size[1],
        "width": size[0],
        "id": number,
        "dataset_name": dataset,
        "bbox_list": [[x, y, x + w, y + h]],
        "text_type": "caption",
        "image": f"train2014/COCO_train2014_{number // 2:012}.jpg",
        "problem": "Please provide the bounding box coordinate of the region this sentence describes:"
        f" the cat number {number}.",
        "normal_caption": f"the cat number {number}",
        "solution": box,
        "normalized_solution": [round(1000 * value / size[at % 2]) for at, value in enumerate(box)],
    }


def coco(folder: Path, count: int, size=(64, 48)) -> Path:
    """COCO's train2014, unpacked."""
    for number in range(count):
        path = folder / "train2014" / f"COCO_train2014_{number:012}.jpg"
        put(path, encoded(5000 + number, size))
    return folder


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    """A zip archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def refcoco_val(folder: Path, rows=6, packed=False) -> Path:
    """VLM-R1's refcoco_val.json and COCO's images, unpacked or in the archives as downloaded."""
    text = json.dumps([vlm_r1_row(number) for number in range(rows)], indent=1).encode()
    names = [f"train2014/COCO_train2014_{number:012}.jpg" for number in range((rows + 1) // 2)]
    if packed:
        zipped(folder / "rec_jsons_processed.zip", {"rec_jsons_processed/refcoco_val.json": text})
        images = {name: encoded(5000 + at, (64, 48)) for at, name in enumerate(names)}
        zipped(folder / "train2014.zip", images)
        return folder
    put(folder / "rec_jsons_processed" / "refcoco_val.json", text)
    return coco(folder, len(names))


def refcoco_train(folder: Path, rows=40, lines=True, doubled=True) -> Path:
    """VLM-R1's training rows, as JSON Lines with conversations or as a list; the first of them twice."""
    made = [vlm_r1_row(number % rows) for number in range(rows + doubled)]
    if lines:
        turned = [
            {
                "id": row["id"],
                "image": row["image"],
                "conversations": [
                    {"from": "human", "value": f"<image>{row['problem']}"},
                    {"from": "gpt", "value": json.dumps(row["solution"])},
                ],
            }
            for row in made
        ]
        text = "\n".join(json.dumps(row) for row in turned) + "\n"
        put(folder / "rec_jsons_processed" / "refcoco_train.jsonl", text.encode())
    else:
        put(folder / "rec_jsons_processed" / "refcoco_train.json", json.dumps(made).encode())
    return coco(folder, (rows + 1) // 2)


def lisa(folder: Path) -> Path:
    """LISA-Grounding: relative image names, no sizes in the rows, images larger than COCO's."""
    rows = [
        {
            "image": f"lisa_{number}.jpg",
            "problem": "Please provide the bounding box coordinate of the region this sentence describes:"
            f" what one would sit on, number {number}.",
            "solution": [10.0, 20.0, 60.0 + number, 70.0],
        }
        for number in range(4)
    ]
    put(folder / "lisa_test.json", json.dumps(rows).encode())
    images = {f"lisa_test/lisa_{number}.jpg": encoded(7000 + number, (90, 80)) for number in range(4)}
    zipped(folder / "lisa_test.zip", images)
    return folder


def refcoco_hub(folder: Path, split="testA") -> Path:
    """A download of lmms-lab-encoder/RefCOCO: a row is an object with several expressions, boxes are xywh."""
    rows = [
        {
            "question_id": str(number),
            "image": {"bytes": encoded(6000 + number // 2, (64, 48)), "path": None},
            "question": "Provide a short description for this region.",
            "answer": [f"man {number}", f"guy {number} on the left"][: 1 + number % 2],
            "segmentation": [1.0, 2.0, 3.0, 4.0],
            "bbox": [5.0 + number, 6.0, 20.0, 16.0],
            "iscrowd": 0,
            "file_name": f"COCO_train2014_{number // 2:012}_{number}.jpg",
        }
        for number in range(4)
    ]
    text, numbers = Value("string"), List(Value("float32"))
    features = {
        "question_id": text,
        "image": Image(),
        "question": text,
        "answer": List(text),
        "segmentation": numbers,
        "bbox": numbers,
        "iscrowd": Value("int8"),
        "file_name": text,
    }
    return parquet(folder / "data" / f"{split}-00000-of-00001.parquet", rows, features)


def ref_l4_rows():
    """Six rows on three images, one of them Objects365's; sizes by the box: small, medium and large."""
    boxes = [[10.5, 20.0, 100.0, 90.0], [5.0, 6.0, 160.0, 150.0], [0.0, 0.0, 300.0, 280.0]]
    names = ["COCO_train2014_000000000001.jpg", "COCO_train2014_000000000002.jpg", "objects365_v1_7.jpg"]
    kinds = ["refcoco_1", "refcoco_37", "o365_1"]
    return [
        {
            "id": number,
            "caption": f"A long expression, number {number}, of the thing that stands beside another.",
            "bbox": boxes[number % 3],
            "bbox_area": boxes[number % 3][2] * boxes[number % 3][3],
            "bbox_id": number,
            "ori_category_id": kinds[number % 3],
            "image_id": number % 3,
            "height": 300,
            "width": 320,
            "file_name": names[number % 3],
            "is_rewrite": number > 2,
            "split": "val" if number < 2 else "test",
        }
        for number in range(6)
    ]


def ref_l4(folder: Path, rows=None, unpacked=False, leave_out=()) -> Path:
    """A download of JierunChen/Ref-L4: two Parquet files without images, and the archive of these."""
    made = ref_l4_rows() if rows is None else rows
    number, text, real = Value("int64"), Value("string"), Value("float64")
    features = {
        "id": number,
        "caption": text,
        "bbox": List(real),
        "bbox_area": real,
        "bbox_id": number,
        "ori_category_id": text,
        "image_id": number,
        "height": number,
        "width": number,
        "file_name": text,
        "is_rewrite": Value("bool"),
        "split": text,
    }
    for split in ("val", "test"):
        parquet(folder / f"ref-l4-{split}.parquet", [row for row in made if row["split"] == split], features)
    images = {
        name: encoded(8000 + at, (320, 300))
        for at, name in enumerate(dict.fromkeys(row["file_name"] for row in ref_l4_rows()))
        if name not in leave_out
    }
    if unpacked:
        for name, data in images.items():
            put(folder / "images" / name, data)
        return folder
    with tarfile.open(folder / "images.tar.gz", "w:gz") as archive:
        for name, data in images.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return folder


MAKERS = {
    "dcsft_imagenet": imagenet_val,
    "dcsft_imagenet_r": imagenet_r,
    "dcsft_imagenet_a": imagenet_a,
    "dcsft_imagenet_pool": imagenet_train,
    "dcsft_imagenet_cold": imagenet_train,
    "dcsft_refcoco_val": lambda folder: refcoco_val(folder, rows=10),
    "dcsft_refcoco_testa": refcoco_hub,
    "dcsft_refcoco_testb": lambda folder: refcoco_hub(folder, split="testB"),
    "dcsft_refcoco_pool": lambda folder: refcoco_train(folder, rows=420),
    "dcsft_refcoco_cold": lambda folder: refcoco_train(folder, rows=12),
    "dcsft_ref_l4": ref_l4,
    "dcsft_lisa": lisa,
}
"""Task -> what makes its source."""


def prepare_all(folder: Path) -> Path:
    """Makes every source of `MAKERS` and prepares it below the folder; returns the data root."""
    from dcsft_harness.data.benchmarks.prepared import prepare

    root = folder / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCSFT_DATA", str(root))
        for task, make in MAKERS.items():
            prepare(task, make(folder / task), any_count=True)
    return root


if __name__ == "__main__":
    print(prepare_all(Path(sys.argv[1])))
