"""Several extractions into one cache at once, each in a process of its own."""

import re
import time

import cache
from cache import layout, process, shard, verify, work, writer
from extract.sources.folder import list_photos
from tests import processes
from tests.pictures import make_folder


def extract_beside_another(folder, flags):
    """Extracts slowly, as soon as another process does so, too."""
    process.import_tensorflow()
    work.PIECE, writer.COMMIT_SECONDS, append = 4, 0, writer.Writer.append

    def append_slowly(self, rows):
        append(self, rows)
        time.sleep(0.05)

    writer.Writer.append = append_slowly
    (folder / f"ready {layout.own_ending()}").touch()
    while len(list(folder.glob("ready*"))) < 2:
        time.sleep(0.01)
    return processes.command("extract", flags)


def test_two_at_once_share_the_work_and_both_end_with_all_of_it(tmp_path, cache_dir, module):
    count = 160
    photos = make_folder(tmp_path / "photos", {"a": count // 2, "b": count // 2})
    flags = ["--image_dir", photos, "--cache_dir", cache_dir, "--module", module, "--batch_size", "2"]
    flags += ["--engine", "tensorflow", "--precision", "float32"]
    both = [processes.Process(extract_beside_another, tmp_path, flags) for _ in range(2)]
    done = [one.wait() for one in both]
    assert [one.returncode for one in done] == [0, 0], done
    computed = [int(re.search(r"(\d+) computed", one.stdout)[1]) for one in done]
    assert min(computed) > 0
    # Each may repeat what the other has in hand: pieces that are being decoded and computed, and are not committed.
    assert count <= sum(computed) < 1.5 * count
    [directory] = layout.directories(cache_dir)
    assert verify.find(directory) == []
    opened = cache.open(cache_dir)
    assert list(opened.paths) == list(list_photos(photos).paths)
    # What both computed is the same to the last bit.
    vectors = {}
    for name in layout.shard_names(directory):
        rows = shard.read(directory / layout.SHARDS / name).rows
        for path, vector in zip(rows.paths, rows.bottlenecks, strict=True):
            assert vectors.setdefault(path, vector.tobytes()) == vector.tobytes()
    assert len(vectors) == count
