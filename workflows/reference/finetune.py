"""Fine-tune the distilled ReferenceNet to tell tumour from normal on PatchCamelyon, evaluate it and write its weights.

Needs in --work: tiles.npy, tiles.csv, teacher.npy and distilled.safetensors (cut_tiles.py, distil.py). Writes
reference.safetensors (the encoder), tumour_head.safetensors and metrics.json.
The atlas knows only whole slides: tiles of benign slides count as normal, and of malignant ones the hottest as tumour,
both with a low weight. So the scanner says nothing about the label, and glands outside lymph nodes stay cold.
"""

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from distil import TARGET_DIM, TRAIN_PATIENTS, augment, normalise, read_atlas, read_pcam, to_float, whiten
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from pathovit.encoders.reference import ReferenceNet

SEED = 1
BATCH = 32  # PCam tiles of a step; as many of the atlas
SMOOTHING = 0.05
DISTIL_WEIGHT = 0.5
ATLAS_WEIGHT = 0.5
HOT_FRACTION = 0.25  # of a malignant slide's tiles that count as tumour
RESCORE_EPOCHS = 3
EMA = 0.99


@torch.no_grad()
def encode(net: nn.Module, tiles: np.ndarray) -> torch.Tensor:
    """Features (N, D) of uint8 tiles (N, 96, 96, 3), as the net makes them after training."""
    net.eval()
    batches = (tiles[first : first + 64] for first in range(0, len(tiles), 64))
    return torch.cat([net(normalise(to_float(batch))).float() for batch in batches])


def hot_labels(scores: np.ndarray, tile_slides: np.ndarray, malignant: np.ndarray) -> torch.Tensor:
    """Tile labels of the atlas: 0 on benign slides, 1 for the hottest of every malignant slide, NaN for its others."""
    labels = np.where(malignant, np.nan, 0.0)
    for slide in np.unique(tile_slides[malignant]):
        rows = np.flatnonzero(tile_slides == slide)
        labels[rows[np.argsort(-scores[rows])[: round(HOT_FRACTION * len(rows))]]] = 1.0
    return torch.from_numpy(labels).float()


def auroc(labels: np.ndarray, scores: np.ndarray) -> dict[str, float | int]:
    """AUROC with its 95 % interval over 2,000 bootstrap samples."""
    rng = np.random.default_rng(SEED)
    samples = rng.integers(len(labels), size=(2000, len(labels)))
    values = [roc_auc_score(labels[rows], scores[rows]) for rows in samples if 0 < labels[rows].mean() < 1]
    low, high = np.percentile(values, [2.5, 97.5])
    figures = {"auroc": roc_auc_score(labels, scores), "low": low, "high": high}
    return {name: round(float(value), 4) for name, value in figures.items()} | {"n": len(labels)}


def evaluate(student: nn.Module, tumour: nn.Module, pcam: dict) -> dict[str, dict]:
    """AUROC on PCam of the tumour head, and of a logistic regression on the features, its C chosen on validation."""
    features = {split: encode(student, tiles) for split, (tiles, _) in pcam.items()}
    fits = [
        make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000)).fit(features["train"], pcam["train"][1])
        for c in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    ]
    fit = max(fits, key=lambda f: roc_auc_score(pcam["validation"][1], f.decision_function(features["validation"])))
    return {
        split: {
            "head": auroc(pcam[split][1], tumour(features[split]).detach().numpy().ravel()),
            "logistic_regression": auroc(pcam[split][1], fit.decision_function(features[split])),
        }
        for split in ("validation", "test")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    torch.manual_seed(SEED)
    tiles, tile_slides, slides = read_atlas(args.data, args.work)
    pcam = read_pcam(args.data)
    of_train = np.flatnonzero([slides[slide]["patient"] in TRAIN_PATIENTS for slide in tile_slides])
    atlas, atlas_slides = tiles[of_train], tile_slides[of_train]
    malignant = np.array([slides[slide]["malignant"] == "1" for slide in atlas_slides])
    targets = whiten(np.load(args.work / "teacher.npy"))  # of the atlas's tiles, then of PCam's
    tumour_labels = torch.from_numpy(pcam["train"][1]).float()

    net = ReferenceNet(drop_path=0.1)
    head = nn.Linear(net.norm.normalized_shape[0], TARGET_DIM)
    nn.Sequential(net, head).load_state_dict(load_file(args.work / "distilled.safetensors"))
    tumour = nn.Linear(net.norm.normalized_shape[0], 1)
    model = nn.ModuleDict({"net": net, "head": head, "tumour": tumour})
    for part in (net.stem, net.stages[:2]):
        part.requires_grad_(False)
    nn.init.zeros_(tumour.weight)
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.05)
    steps = len(tumour_labels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-4, args.epochs * steps, pct_start=0.15)
    hot = torch.full((len(atlas),), torch.nan)
    for epoch in range(args.epochs):
        started, totals = time.monotonic(), np.zeros(2)
        if epoch and epoch % RESCORE_EPOCHS == 0:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                scores = average["tumour"](encode(average["net"], atlas)).float().numpy().ravel()
            hot = hot_labels(scores, atlas_slides, malignant)
        model.train()
        for rows in torch.randperm(len(tumour_labels))[: steps * BATCH].view(-1, BATCH):
            atlas_rows = torch.randint(len(atlas), (BATCH,))
            x = augment(np.concatenate([pcam["train"][0][rows], atlas[atlas_rows]]))
            with torch.autocast("cpu", torch.bfloat16):
                features = net(x)
            scores = tumour(features.float()).ravel()
            labels = torch.cat([tumour_labels[rows], hot[atlas_rows]])
            weights = torch.cat([torch.ones(BATCH), torch.full((BATCH,), ATLAS_WEIGHT)]) * ~labels.isnan()
            smooth = labels.nan_to_num() * (1 - 2 * SMOOTHING) + SMOOTHING
            supervised = (F.binary_cross_entropy_with_logits(scores, smooth, reduction="none") * weights).sum() / BATCH
            distilled = F.mse_loss(head(features.float()), targets[torch.cat([rows + len(atlas), atlas_rows])])
            optimizer.zero_grad()
            (supervised + DISTIL_WEIGHT * distilled).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                    mean.lerp_(value, 1 - EMA) if mean.is_floating_point() else mean.copy_(value)
            totals += np.array([supervised.item(), distilled.item()]) / steps
        found = encode(average["net"], pcam["validation"][0])
        value = roc_auc_score(pcam["validation"][1], average["tumour"](found).detach().ravel())
        passed_s = time.monotonic() - started
        print(f"epoch {epoch}: losses {totals.round(4)}, validation {value:.4f}, {passed_s:.0f} s", flush=True)

    net, tumour = average["net"].eval(), average["tumour"].eval()
    # Half the bytes for the weight matrices; what is one number per channel stays float32.
    state = {name: value.half() if value.ndim > 1 else value for name, value in net.state_dict().items()}
    save_file(state, args.work / "reference.safetensors")
    save_file(tumour.state_dict(), args.work / "tumour_head.safetensors")
    net.load_state_dict(load_file(args.work / "reference.safetensors"))
    metrics = {"pcam": evaluate(net, tumour, pcam), "atlas": {}}
    for slide in np.unique(tile_slides):
        scores = tumour(encode(net, tiles[tile_slides == slide])).sigmoid().detach().numpy().ravel()
        metrics["atlas"][slide] = {
            "malignant": int(slides[slide]["malignant"]),
            "held_out": slides[slide]["patient"] not in TRAIN_PATIENTS,
            "tiles": len(scores),
            "mean": round(float(scores.mean()), 4),
            "median": round(float(np.median(scores)), 4),
            "p95": round(float(np.percentile(scores, 95)), 4),
        }
    metrics["parameters"] = sum(p.numel() for p in net.parameters())
    (args.work / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    print(json.dumps(metrics))


if __name__ == "__main__":
    main()
