"""The cache of a frozen backbone's features, and the batches that training and evaluation read from it."""

import numpy as np
import pytest
import torch
from filelock import FileLock

from agegen.backbone import Backbone, InputSpec, TrainingDefaults
from agegen.batches.cache_folder import clear_cache, list_cache
from agegen.batches.features import BLOCK, FeatureCache, LabelledFeatures, TrainFeatures, make_view
from agegen.batches.images import Pixels, build_view_augmentation
from agegen.batches.sources import SourceOptions, make_eval_source
from agegen.data.demo import draw_records
from agegen.data.scan import scan_images
from agegen.distributed import SINGLE_PROCESS, DistContext
from agegen.errors import AgegenError
from agegen.machine import choose_compute
from agegen.model.network import AgeGenderModel

COUNT = 2 * BLOCK + 10


class FrozenMeans(Backbone):
    """Averages the quarters of an image; counts the images that it saw."""

    input_spec = InputSpec(size=32)
    feature_dim = 12
    defaults = TrainingDefaults(epochs=1, lr=1e-3, batch_size=16, views=3)
    frozen = True
    identity = "test/means"
    seen = 0

    def forward(self, images):
        type(self).seen += len(images)
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


@pytest.fixture(scope="module")
def scan():
    return scan_images(draw_records(COUNT), 32)


@pytest.fixture
def make(scan, tmp_path):
    FrozenMeans.seen = 0
    pixels = Pixels(scan.records, 32, scan.pixels)

    def load(views=2, sha256=None, on_progress=lambda *_: None):
        cache = FeatureCache(
            tmp_path / "c", AgeGenderModel(FrozenMeans()), sha256 or scan.sha256, choose_compute("cpu", "fp32")
        )
        return cache, cache.load(pixels, views, on_progress)

    return load


def test_cached_features_are_those_of_the_model(make, scan):
    _, features = make(views=3)
    model = AgeGenderModel(FrozenMeans())
    augmentation = build_view_augmentation(FrozenMeans.input_spec)
    for view in range(3):
        image = make_view(scan.pixels[5], view, 5, augmentation if view > 1 else None)
        wanted = model.extract_features(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
        assert features.take(np.array([5]), view)[0] == pytest.approx(wanted.numpy(), abs=2e-3)
    plain, mirrored = (features.take(np.arange(COUNT), view).reshape(-1, 3, 2, 2) for view in (0, 1))
    assert np.abs(plain - mirrored[:, :, :, ::-1]).max() < 0.01
    assert not np.array_equal(plain, mirrored)


def test_a_second_load_computes_only_missing_views(make):
    make(views=2)
    assert FrozenMeans.seen == 2 * COUNT
    make(views=2)
    assert FrozenMeans.seen == 2 * COUNT
    make(views=3)
    assert FrozenMeans.seen == 3 * COUNT


def test_the_seconds_of_the_extraction_are_kept(make):
    _, first = make()
    _, second = make()
    assert second.seconds == first.seconds > 0


def test_an_interrupted_extraction_is_resumed(make):
    def interrupt(stage, done, total):
        if done > BLOCK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(on_progress=interrupt)
    assert FrozenMeans.seen == 2 * BLOCK
    make(views=1)
    assert FrozenMeans.seen == COUNT


def test_waiting_for_another_process_is_reported(make):
    """It may take half an hour, in which nothing else happens."""
    cache, _ = make(views=1)
    other = FileLock(cache.folder.parent / f"{cache.folder.name}.lock")
    other.acquire()
    reported = []

    def release(stage, done, total):
        reported.append((stage, done, total))
        if len(reported) == 2:
            other.release(force=True)

    make(views=1, on_progress=release)
    waiting = "waiting for another process that extracts the same features"
    assert reported == [(waiting, 0, 1), (waiting, 0, 1), (waiting, 1, 1)]


def test_only_a_damaged_block_is_computed_again(make):
    cache, features = make()
    wanted = features.take(np.arange(COUNT), 0).copy()
    path = cache.folder / "view-0.f16"
    content = bytearray(path.read_bytes())
    content[BLOCK * 12 * 2 + 7] ^= 0xFF
    path.write_bytes(content)
    FrozenMeans.seen = 0
    _, features = make()
    assert FrozenMeans.seen == BLOCK
    assert np.array_equal(features.take(np.arange(COUNT), 0), wanted)


def test_a_truncated_file_and_another_description_are_rebuilt(make):
    cache, _ = make()
    path = cache.folder / "view-1.f16"
    path.write_bytes(path.read_bytes()[:100])
    FrozenMeans.seen = 0
    make()
    assert FrozenMeans.seen == COUNT
    (cache.folder / "meta.json").write_text("{}")
    make()
    assert FrozenMeans.seen == 3 * COUNT


def test_other_data_have_another_cache(make, scan):
    first, _ = make()
    second, _ = make(sha256=["x", *scan.sha256[1:]])
    assert first.folder != second.folder


def test_listing_and_clearing(make, tmp_path):
    make()
    (entry,) = list_cache(tmp_path / "c")
    assert (entry.identity, entry.faces, entry.views) == ("test/means", COUNT, 2)
    assert entry.size > 2 * COUNT * 12 * 2
    assert clear_cache(tmp_path / "c") == entry.size
    assert list_cache(tmp_path / "c") == []


def test_a_cache_folder_that_cannot_be_written_is_one_line(make, tmp_path):
    (tmp_path / "c").write_text("a file")
    with pytest.raises(AgegenError, match="choose another --cache-dir"):
        make()


def test_an_evaluation_computes_only_the_features_it_needs(make, scan, tmp_path):
    """Those of the chosen faces; none if a training has cached those of all faces."""
    cache, features = make()
    assert cache.has_views(2)
    assert not cache.has_views(3)
    model, chosen = AgeGenderModel(FrozenMeans()), np.zeros(COUNT, dtype=bool)
    chosen[3::20] = True
    views = []
    for folder, computed in (("c", 0), ("elsewhere", 2 * chosen.sum()), ("elsewhere", 0)):
        FrozenMeans.seen = 0
        options = SourceOptions(choose_compute("cpu", "fp32"), 16, cache_dir=tmp_path / folder)
        _, source = make_eval_source(model, scan, chosen, options)
        views.append(torch.cat([batch.views[0] for batch in source.iterate()]))
        assert FrozenMeans.seen == computed
        assert np.array_equal(source.labels.low, scan.records.labels.pick(np.flatnonzero(chosen)).low)
    assert torch.equal(views[0], views[1])
    assert torch.equal(views[0], views[2])
    assert np.array_equal(views[0].numpy(), features.take(np.flatnonzero(chosen), 0))


def test_a_model_with_one_view_needs_no_mirrored_features(scan, tmp_path):
    model, chosen = AgeGenderModel(FrozenMeans()), np.zeros(COUNT, dtype=bool)
    model.views, chosen[3::20] = 1, True
    FrozenMeans.seen = 0
    options = SourceOptions(choose_compute("cpu", "fp32"), 16, cache_dir=tmp_path)
    _, source = make_eval_source(model, scan, chosen, options)
    assert {len(batch.views) for batch in source.iterate()} == {1}
    assert FrozenMeans.seen == chosen.sum()


def make_train_features(features, records, weights, dist=SINGLE_PROCESS):
    data = LabelledFeatures(features, np.arange(COUNT), records.labels)
    return TrainFeatures(data, 20, seed=3, weights=weights, dist=dist)


def list_batches(source, start=0):
    return [batch.views[0] for batch in source.iterate(1, start)]


def test_a_face_drawn_several_times_in_an_epoch_gets_all_its_views(make, scan):
    """Balanced sampling repeats the faces of rare ages; the features of one view would teach nothing new."""
    _, features = make(views=3)
    weights = np.array([30.0] + [(COUNT - 30) / (COUNT - 1)] * (COUNT - 1))
    source = make_train_features(features, scan.records, weights)
    order = source.draw_epoch(1)[: len(source) * 20]
    drawn = torch.cat(list_batches(source))
    views = [torch.from_numpy(features.take(np.array([0]), view)).float() for view in range(3)]
    counts = [int((drawn == view).all(dim=1).sum()) for view in views]
    assert sum(counts) == (order == 0).sum() > 20
    assert max(counts) - min(counts) <= 1


def test_resumed_epochs_and_processes_give_the_same_features(make, scan):
    _, features = make(views=3)
    weights = np.linspace(0.1, 1.9, COUNT)
    whole = list_batches(make_train_features(features, scan.records, weights))
    assert torch.equal(list_batches(make_train_features(features, scan.records, weights), start=4)[0], whole[4])
    parts = [
        list_batches(make_train_features(features, scan.records, weights, DistContext(rank, 2))) for rank in (0, 1)
    ]
    for number, batch in enumerate(whole):
        # The order within a batch is free.
        joined = torch.cat([part[number] for part in parts])
        assert torch.equal(joined.sort(dim=0).values, batch.sort(dim=0).values)
