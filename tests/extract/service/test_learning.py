"""Why an answer is what it is, corrections, and a new head from them, with a real training beside a real service."""

import base64
import io
import time
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

import cache
from cache import head, near, thumbnails
from tests import small_cache
from tests.extract.service import serving

PATIENCE = 120  # seconds for a training of some dozen photos, TensorFlow's import included


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A server that takes corrections, the folder that it serves, which tests may change, and that of corrections."""
    root = tmp_path_factory.mktemp("learning")
    serving.make(root)
    server = serving.Server(root, "--corrections", root / "corrections")
    yield server, root, root / "corrections"
    assert server.stop() == 0


def picture(colour, seed):
    """A PNG file of that colour with some grain."""
    generator = np.random.default_rng(seed)
    pixels = np.array(colour) + generator.normal(0, 20, (12, 12, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def multipart(contents):
    """A body with these files, and its headers."""
    boundary = "edge"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{n}.png"\r\n\r\n'.encode() + content
        for n, content in enumerate(contents)
    ]
    body = b"\r\n".join([*parts, f"--{boundary}--\r\n".encode()])
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def trained(server, name):
    """Trains a head and returns what the service says of it in the end."""
    assert server.post(f"/v1/training?head={quote(name)}").status == 202
    assert server.post(f"/v1/training?head={quote(name)}").status == 409  # one at a time
    end = time.monotonic() + PATIENCE
    while (said := server.get("/v1/training").json)["state"] == "running":
        assert time.monotonic() < end
        time.sleep(0.2)
    return said


def test_the_nearest_photos_are_those_of_the_cache_with_their_thumbnails(served, server):
    opened = cache.open(served / "cache")
    photos = serving.photos(served, 3)
    body, headers = multipart([photos[0], b"no image", photos[2]])
    answer = server.post("/v1/near?k=4", body, headers).json["images"]
    assert "error" in answer[1] and "near" not in answer[1]
    for photo, found in ((0, answer[0]["near"]), (2, answer[2]["near"])):
        [row] = near.rows_of(opened, [f"{serving.LABELS[photo]}/00.png"])
        rows, cosines = near.nearest(opened, opened.bottlenecks(np.array([row])), 4)
        assert [one["path"] for one in found] == [opened.paths[r] for r in rows[0].tolist()]
        assert [one["label"] for one in found] == [opened.labels[opened.label_ids[r]] for r in rows[0].tolist()]
        np.testing.assert_allclose([one["cosine"] for one in found], cosines[0], atol=1e-5)
        shown = [base64.b64decode(one["thumbnail"].removeprefix("data:image/jpeg;base64,")) for one in found]
        assert shown == thumbnails.find(opened, rows[0])


def test_where_no_image_can_be_decoded_each_says_so(server):
    body, headers = multipart([b"no image", b"none either"])
    reply = server.post("/v1/near", body, headers)
    assert reply.status == 200
    assert [("error" in one, "near" in one) for one in reply.json["images"]] == [(True, False)] * 2


def test_a_head_says_what_it_knows(served, server):
    layer = head.read(served / serving.HEAD)
    said = server.get(f"/v1/heads/{serving.HEAD}").json
    assert said["labels"] == list(layer.labels)
    assert (said["test_accuracy"], said["test_photos"]) == (layer.test_accuracy, layer.test_photos)
    assert said["temperature"] == layer.temperature
    assert sum(one["count"] for one in said["calibration"]) == layer.calibration.counts.sum()
    assert [one["label"] for one in said["examples"]] == [layer.labels[e.label_id] for e in layer.examples]
    assert server.get("/v1/heads/nothing").status == 404


def test_without_the_flag_no_corrections_are_taken(served, server):
    [photo] = serving.photos(served, 1)
    reply = server.post("/v1/corrections?label=x", photo)
    assert (reply.status, "--corrections DIR" in reply.error) == (404, True)
    assert server.post("/v1/training?head=x").status == 404


@pytest.mark.parametrize(
    "label", ["", " ", ".hidden", "..", "a/b", "../x", "a\\b", "a\nb", "a\0b", "lost+found", "x" * 101, "@eaDir"]
)
def test_a_label_that_would_lead_elsewhere_is_refused(world, label):
    server, root, _ = world
    before = sorted(root.rglob("*"))
    reply = server.post(f"/v1/corrections?label={quote(label)}", picture((250, 250, 0), 1))
    assert (reply.status, "label" in reply.error) == (400, True)
    assert sorted(root.rglob("*")) == before


def test_pages_of_other_origins_may_not_write(world):
    server, _, folder = world
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        reply = server.post("/v1/corrections?label=x", picture((250, 250, 0), 1), headers)
        assert reply.status == 403
    assert not list(folder.iterdir())
    own = {"Origin": server.url}
    assert server.post("/v1/corrections?label=x", picture((250, 250, 0), 1), own).status == 200
    path = server.post("/v1/corrections?label=x", picture((250, 250, 0), 1), own).json["images"][0]["path"]
    assert server.ask("DELETE", f"/v1/corrections?label=x&path={path}", None).status == 200
    assert server.get("/v1/corrections").json == {"labels": []}
    assert server.ask("DELETE", f"/v1/corrections?label=x&path={path}", None).status == 404


def test_a_photo_has_one_class_the_last_that_was_said(world):
    server, _, folder = world
    photo = picture((10, 200, 200), 2)
    for label in ("first", "second"):
        [kept] = server.post(f"/v1/corrections?label={label}", photo).json["images"]
    assert server.get("/v1/corrections").json == {"labels": [{"label": "second", "count": 1}]}
    assert (folder / "second" / kept["path"]).read_bytes() == photo
    assert server.ask("DELETE", f"/v1/corrections?label=second&path={kept['path']}", None).status == 200
    # A label that differs by case alone is the one that is there.
    body = server.post("/v1/corrections?label=Blue-Things", photo).json
    assert body["label"] == "blue things"
    assert server.ask("DELETE", f"/v1/corrections?label=blue%20things&path={kept['path']}", None).status == 200


def test_a_new_head_learns_a_new_class_and_takes_the_old_ones_place_when_told(world):
    server, root, folder = world
    yellow = [picture((240, 230, 20), seed) for seed in range(12)]
    body, headers = multipart([*yellow, b"no image"])
    kept = server.post("/v1/corrections?label=yellow%20things", body, headers).json["images"]
    assert [("path" in one) for one in kept] == [True] * 12 + [False]
    # A photo of the cache that was put into another class trains as that alone.
    moved = (root / "photos" / small_cache.LABELS[0] / "00.png").read_bytes()
    assert server.post("/v1/corrections?label=red%20things", moved).status == 200
    before = server.post(f"/v1/classify/{serving.HEAD}", yellow[0]).json
    said = trained(server, serving.HEAD)
    assert (said["state"], said["error"]) == ("done", None)
    counted = f"4 classes, {3 * serving.PHOTOS + 12:,} photos"
    assert any(line.startswith(counted) for line in said["lines"])
    assert said["old"]["labels"] == serving.LABELS
    assert said["new"]["labels"] == [*serving.LABELS, "yellow things"]
    assert server.post(f"/v1/classify/{serving.HEAD}", yellow[0]).json == before  # not before it is told to
    assert server.post("/v1/training/swap").json == {"name": serving.HEAD, "version": 2}
    answer = server.post(f"/v1/classify/{serving.HEAD}", picture((240, 230, 20), 99)).json
    assert answer["images"][0]["labels"][0]["label"] == "yellow things"
    assert list(head.read(root / serving.HEAD).labels) == [*serving.LABELS, "yellow things"]
    assert sorted(entry.name for entry in folder.iterdir()) == ["red things", "yellow things"]
    assert len(cache.open(root / "cache")) == 3 * serving.PHOTOS  # the cache is as it was
    assert server.post("/v1/training/swap").status == 409


def test_a_head_cannot_be_made_outside_the_folder(world):
    server, _, _ = world
    before = server.get("/v1").json["heads"]
    assert server.post("/v1/training?head=..%2Foutside").status == 400
    assert server.get("/v1").json["heads"] == before


def test_a_classifier_from_nothing(tmp_path, served):
    """An empty cache and a new folder: two classes of some photos, a training, answers."""
    (tmp_path / "cache").mkdir()
    module = served / "module"
    server = serving.Server(tmp_path, "--module", module, "--corrections", tmp_path / "new", head=False)
    try:
        reply = trained(server, "colours")
        assert (reply["state"], "error" in reply) == ("failed", True)
        for label, colour in (("red", (220, 20, 20)), ("green", (20, 200, 20))):
            body, headers = multipart([picture(colour, seed) for seed in range(6)])
            assert server.post(f"/v1/corrections?label={label}", body, headers).status == 200
        said = trained(server, "colours")
        assert said["state"] == "done", said
        assert said["old"] is None
        assert server.post("/v1/training/discard").status == 200
        assert server.post("/v1/training/swap").status == 409
        assert trained(server, "colours")["state"] == "done"
        assert server.post("/v1/training/swap").json == {"name": "colours", "version": 1}
        answer = server.post("/v1/classify/colours", picture((220, 20, 20), 99)).json
        assert answer["images"][0]["labels"][0]["label"] == "red"
    finally:
        assert server.stop() == 0
    again = serving.Server(tmp_path, "--module", module, "--corrections", tmp_path / "new", head=False)
    assert [one["name"] for one in again.get("/v1").json["heads"]] == ["colours"]
    assert again.stop() == 0
