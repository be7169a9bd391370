"""One generator, predictor or model in several threads: right answers, or a refusal."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pytest

from benchmarks import threads
from segment_anything_transformers import SAMAutomaticMaskGenerator, SAMPredictor
from tests.tiny import random_model, small_config

THREADS, ROUNDS = 4, 3
IMAGES = [
    np.random.default_rng(seed).integers(0, 256, (40 + 20 * seed, 70, 3), np.uint8)
    for seed in range(THREADS)
]
ALL_MASKS = {"pred_iou_thresh": 0, "stability_score_thresh": 0, "output_mode": "coco_rle"}
POINT = [[20.0, 30.0]]


@pytest.fixture(scope="module")
def model():
    return random_model(small_config())


def in_threads(work):
    """What each of some threads gives for its own number, all of them started together."""
    barrier = threading.Barrier(THREADS)

    def start(number):
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return [*pool.map(start, range(THREADS))]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"crop_n_layers": 1}, {"skip_covered_points": True}])
def test_a_generator_is_shared_by_threads(model, options):
    generator = SAMAutomaticMaskGenerator(model, points_per_side=3, **ALL_MASKS, **options)
    expected = [generator.generate(image) for image in IMAGES]
    assert all(expected)
    found = in_threads(lambda number: [generator.generate(IMAGES[number]) for _ in range(ROUNDS)])
    for of_thread, right in zip(found, expected, strict=True):
        assert of_thread == [right] * ROUNDS


def test_threads_that_ask_in_every_way_for_a_while(model):
    """As `python -m benchmarks.threads` does for a minute."""
    counts = threads.hammered(model, IMAGES, seconds=1.0, threads=THREADS)
    assert threads.is_sound(counts), counts
    assert len(counts) == 3


def test_wrong_answers_and_errors_are_no_sound_result(model, monkeypatch):
    answers = iter([np.float32(0), np.float32(1), "no array"] * 99)
    monkeypatch.setattr(SAMPredictor, "__call__", lambda self, points: [next(answers)])
    counts = threads.hammered(model, IMAGES[:1], seconds=0.3, threads=1)
    assert not threads.is_sound(counts)
    outcomes = {outcome.partition(":")[0] for counted in counts.values() for outcome in counted}
    assert {"wrong", "AttributeError"} <= outcomes


def test_generators_of_one_model_answer_as_alone(model):
    def work(number):
        generator = SAMAutomaticMaskGenerator(model, points_per_side=2, **ALL_MASKS)
        return [generator.generate(IMAGES[number]) for _ in range(ROUNDS)]

    alone = [work(number)[0] for number in range(THREADS)]
    assert in_threads(work) == [[right] * ROUNDS for right in alone]


def test_a_predictor_of_its_own_for_each_thread(model):
    def work(number):
        predictor, answers = SAMPredictor(model), []
        for _ in range(ROUNDS):
            predictor.set_image(IMAGES[number])
            answers.append(predictor(points=POINT)[2])
        return np.stack(answers)

    for number, found in enumerate(in_threads(work)):
        np.testing.assert_array_equal(found, work(number))


def test_a_shared_predictor_answers_right_or_refuses(model):
    shared = SAMPredictor(model)
    right = []
    for image in IMAGES:
        shared.set_image(image)
        right.append(shared(points=POINT)[2])
    shared = SAMPredictor(model)

    def work(number):
        refusals = []
        for _ in range(ROUNDS):
            shared.set_image(IMAGES[number])
            try:
                masks, _, logits = shared(points=POINT)
            except RuntimeError as error:
                refusals.append(str(error))
                continue
            np.testing.assert_array_equal(logits, right[number])
            assert masks.shape[1:] == IMAGES[number].shape[:2]
        return refusals

    for refusal in chain.from_iterable(in_threads(work)):
        assert "SAMPredictor for each thread" in refusal


def another_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_an_image_that_another_thread_replaced_is_refused(model):
    predictor = SAMPredictor(model)
    predictor.set_image(IMAGES[0])
    another_thread(lambda: predictor.set_image(IMAGES[1]))
    for ask in (
        lambda: predictor(points=POINT),
        lambda: predictor.zoom(None),
        lambda: predictor.original_size,
    ):
        with pytest.raises(RuntimeError, match=r"Another thread or task has set .* this predictor"):
            ask()
    predictor.set_image(IMAGES[2])  # its own again
    assert predictor.original_size == IMAGES[2].shape[:2]


def test_a_part_that_another_thread_zoomed_to_is_refused(model):
    predictor = SAMPredictor(model)
    predictor.set_image(IMAGES[3])
    another_thread(lambda: predictor.zoom([30, 30, 40, 40]))
    with pytest.raises(RuntimeError, match="Another thread or task"):
        predictor(points=POINT)


def test_threads_may_ask_about_an_image_that_one_of_them_set(model):
    predictor = SAMPredictor(model)
    predictor.set_image(IMAGES[0])
    expected = predictor(points=POINT)[2]
    for logits in in_threads(lambda number: predictor(points=POINT)[2]):
        np.testing.assert_array_equal(logits, expected)


def test_requests_to_a_server_may_share_an_image(model):
    """Each request runs in a thread of a pool, in a context of its own, as in FastAPI or Gradio."""
    predictor = SAMPredictor(model)

    async def requests():
        for image in IMAGES[:3]:  # more than once from the same threads
            await asyncio.to_thread(predictor.set_image, image)
            await asyncio.to_thread(predictor, points=POINT)
            assert await asyncio.to_thread(lambda: predictor.original_size) == image.shape[:2]

    asyncio.run(requests())


def test_two_tasks_of_an_event_loop_are_told_apart(model):
    predictor = SAMPredictor(model)

    async def work(image):
        predictor.set_image(image)
        await asyncio.sleep(0)
        predictor(points=POINT)

    async def both():
        return await asyncio.gather(*map(work, IMAGES[:2]), return_exceptions=True)

    first, second = asyncio.run(both())
    assert isinstance(first, RuntimeError)
    assert second is None
