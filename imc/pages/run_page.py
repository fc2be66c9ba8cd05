"""The page of a run: one file, or a folder of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from imc.command_line.terminal import Stages
from imc.data import Images
from imc.files.json import read_json
from imc.files.run_places import FIGURES, METRICS, RESULT
from imc.files.whole import replacing
from imc.metrics import SCORES, clustering_scores, confusion_matrix, per_class_table
from imc.pages.charts import chart, curves
from imc.pages.contents import STATIC, Contents, for_scripts
from imc.pages.evidence import evidence
from imc.pages.run_figures import describe, draw_confusion, prototype_winners
from imc.pages.template import embedded, render, shown_size
from imc.pages.thumbnails import Sheet
from imc.runs.files import read_metrics
from imc.runs.model import LoadedRun
from imc.runs.names import Names, digest_of_model
from imc.scores.evaluation import AS_TRAINED, Outputs, evenly_spaced
from imc.text import counted, inflected, shell_word

PROTOTYPE_IMAGES = 5000  # that choose their prototype: it is another pass through the encoder
BATCH = 128  # of them at a time
INDEX, SHEETS, CLUSTERS = "index.html", "sheets", "clusters"  # of a folder


class RunPage:
    """What a page shows, whether it is one file or a folder."""

    def __init__(
        self,
        folder: Path,
        run: LoadedRun,
        note: str,
        contents: Contents,
        names: Names,
        originals: Sequence[Path] | None,
        side: int,
    ) -> None:
        self.folder, self.run, self.note, self.contents, self.names = folder, run, note, contents, names
        self.originals, self.side = originals, side
        self.images, self.result = contents.images, contents.result
        name = run.config.name or folder.resolve().name
        self.title = name if name == self.images.name else f"{name}: {self.images.name}"

    def write(self, path: Path, sheets: Iterator[Sheet], stages: Stages) -> None:
        """The page as one file."""
        made = [(sheet, embedded(sheet.content)) for sheet in sheets]
        clusters = self._clusters()
        for entry, shown in zip(clusters, self._by_cluster(made), strict=True):
            entry["sheets"] = shown
        stages.next()
        with replacing(path) as file:
            self._render(file, clusters, [(sheet, "") for sheet, _ in made], stages, local=False)

    def write_folder(self, place: Path, sheets: Iterator[Sheet], stages: Stages) -> None:
        """The page as a folder: index.html, the sheets as files, and for each cluster a page without scripts."""
        (place / SHEETS).mkdir()
        (place / CLUSTERS).mkdir()
        made: list[tuple[Sheet, str]] = []
        for number, sheet in enumerate(sheets):
            address = f"{SHEETS}/{number:05}.jpg"
            (place / address).write_bytes(sheet.content)
            made.append((sheet.without_content(), address))
        clusters = self._clusters()
        for entry, shown in zip(clusters, self._by_cluster(made), strict=True):
            if entry["size"]:
                entry["page"] = f"{CLUSTERS}/{entry['number']:04}.html"
                text = render("cluster.html", scripts=False, local=True, **{**entry, "sheets": shown})
                (place / entry["page"]).write_text(text, encoding="utf-8")
            del entry["files"]
        stages.next()
        with (place / INDEX).open("w", encoding="utf-8", newline="") as file:
            self._render(file, clusters, made, stages, local=True)

    def _render(
        self,
        file: IO[str],
        clusters: list[dict[str, Any]],
        sheets: Sequence[tuple[Sheet, str]],
        stages: Stages,
        *,
        local: bool,
    ) -> None:
        contents, images, total = self.contents, self.images, len(self.contents.sizes)
        examples = self._evidence()
        stages.next()
        data = for_scripts(
            contents,
            self.names,
            model=digest_of_model(self.folder),
            command=shell_word(self.folder),
            originals=self.originals,
            sheets=sheets,
            side=self.side,
        )
        config = self.run.config.to_dict()
        metrics = read_metrics(self.folder / METRICS)
        seconds = round(sum(line.get("seconds", 0) for line in metrics))
        trained = f"{counted(len(metrics), 'epoch{s}')} in {counted(seconds, 'second{s}')}"
        sample = evenly_spaced(len(images.images), PROTOTYPE_IMAGES)
        winners = prototype_winners(self.run, images.images[sample], BATCH)
        ranks = None if winners is None else np.sort(np.bincount(winners[0], minlength=winners[1]))[::-1].tolist()
        use = f"Of {counted(len(sample), 'image{s}')} those of each prototype, the most used first"
        prototypes = None if ranks is None else chart(use, "rank 1", f"rank {len(ranks):,}", {"images": ranks})
        placed = f"{counted(len(contents.placed), 'image{s}')} of {len(images.images):,}"
        file.write(
            render(
                "page.html",
                local=local,
                title=self.title,
                note=self.note,
                numbers=_numbers(images, self.result, contents.kind),
                clusters=clusters,
                largest=int(contents.sizes.max()),
                empty=", ".join(map(str, np.flatnonzero(contents.sizes == 0))),
                doubtful=[self._doubt(index) for index in contents.doubtful[:STATIC].tolist()],
                duplicates=[[contents.file(index) for index in group] for group in contents.groups],
                map_note=f"{placed}, near those that look alike to the model (t-SNE of the encoder's features).",
                classes=None if images.labels is None else _classes(images, self.result),
                confusion=self._confusion(total),
                evidence=examples,
                trained=trained,
                curves=curves(metrics),
                prototypes=prototypes,
                machine=_machine(self.folder),
                options=[(name, _text(value)) for name, value in config.items() if value is not None],
                form=f"All of this page is by the model with {AS_TRAINED}, like labels.csv, predictions and exports.",
                data=data,
            )
        )
        stages.next()

    def _clusters(self) -> list[dict[str, Any]]:
        """What is said about each cluster."""
        result, members = self.result, self.contents.members()
        texts = describe(self.images, result.clusters, len(self.contents.sizes))
        entries = []
        for cluster, size in enumerate(self.contents.sizes.tolist()):
            own = members.get(cluster, np.empty(0, np.int64))
            sure = f", mean confidence {result.confidence[own].mean():.0%}" if size else ""
            text = texts[cluster].replace(f"{size:,}", counted(size, f"{self.contents.kind}{{s}}"), 1) + sure
            files = [self.contents.file(index) for index in own.tolist()]
            entries.append(
                {"number": cluster, "size": size, "title": self._name(cluster), "text": text}
                | {"files": files, "sheets": [], "page": ""}
            )
        return entries

    def _by_cluster(self, sheets: Sequence[tuple[Sheet, str]]) -> Iterator[list[dict[str, Any]]]:
        """The sheets of each cluster, as the templates take them."""
        remaining = iter(sheets)
        end, start = 0, 0
        current = next(remaining, None)
        for size in self.contents.sizes.tolist():
            start, end = end, end + size
            shown = []
            while current is not None and current[0].first < end:
                sheet, source = current
                images = self.contents.order[sheet.first : sheet.first + sheet.count].tolist()
                names = [self.contents.file(index) for index in images]
                width, height = sheet.size(self.side)
                shown.append(
                    {"src": source, "count": sheet.count, "start": sheet.first - start + 1, "files": names}
                    | {"width": width, "height": height}
                )
                current = next(remaining, None)
            yield shown

    def _name(self, cluster: int) -> str:
        return self.names.names.get(cluster, f"Cluster {cluster}")

    def _doubt(self, index: int) -> tuple[str, ...]:
        contents, result = self.contents, self.result
        first, second = int(result.clusters[index]), int(contents.second[index])
        return (
            contents.file(index),
            self._name(first),
            f"{result.confidence[index]:.0%}",
            self._name(second),
            f"{contents.second_confidence[index]:.0%}",
        )

    def _confusion(self, total: int) -> dict[str, Any] | None:
        if self.images.labels is None:
            return None
        figures = self.folder / FIGURES
        figures.mkdir(exist_ok=True)
        drawn = draw_confusion(figures / "confusion-train.png", self.images, self.result.clusters, total)
        return {"src": embedded(drawn.path.read_bytes()), "alt": drawn.alt, **shown_size(drawn.path.read_bytes(), 2)}

    def _evidence(self) -> list[dict[str, Any]]:
        if self.images.are_features:
            return []
        return [
            {"number": cluster, "title": self._name(cluster), "count": count}
            | {"src": embedded(content), **shown_size(content, 1)}
            for cluster, count, content in evidence(self.run, self.images, self.contents.members())
        ]


def _numbers(images: Images, result: Outputs, kind: str) -> list[tuple[str, str]]:
    clusters, total = result.clusters, result.probabilities.shape[1]
    numbers = [
        (f"{len(clusters):,}", inflected(len(clusters), f"{kind}{{s}}")),
        (f"{len(np.unique(clusters))} of {total}", "clusters in use"),
    ]
    if images.labels is not None:
        scores = clustering_scores(images.labels.numpy(), clusters)
        numbers += [(f"{scores[score]:.3f}", score.upper()) for score in SCORES]
    return [*numbers, (f"{result.confidence.mean():.0%}", "mean confidence")]


def _classes(images: Images, result: Outputs) -> list[tuple[Any, ...]]:
    assert images.labels is not None
    shape = {"num_classes": len(images.class_names), "num_clusters": result.probabilities.shape[1]}
    table = per_class_table(confusion_matrix(images.labels.numpy(), result.clusters, **shape), images.class_names)
    shares = ("precision", "recall")
    return [(row["class"], row["images"], row["cluster"], *(f"{row[share]:.1%}" for share in shares)) for row in table]


def _machine(folder: Path) -> list[tuple[str, str]]:
    path = folder / RESULT
    result = read_json(path) if path.exists() else {}
    parts = [part for part in (result.get("machine"), result.get("versions")) if isinstance(part, dict)]
    return [
        (name, _text(value)) for part in (*parts, {"backend": result.get("backend")}) for name, value in part.items()
    ]


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
