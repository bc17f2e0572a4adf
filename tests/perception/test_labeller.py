"""The labeller at tiny random sizes of the real classes, against slow steps by hand."""

from __future__ import annotations

from pathlib import Path
import shutil

from models import (
    VOCABULARY_WORDS,
    save_depth_anything,
    save_first_guess_model,
    save_small_labeller,
    save_small_tracker,
    save_small_vocabulary,
)
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mirage_model.camera import Cameras
from mirage_model.engine.config import EngineOptions
from mirage_model.engine.engine import Engine
from mirage_model.interface import Observation
from mirage_model.io import read_json, write_json
from mirage_model.model.checkpoint import load_model, load_model_info
from mirage_model.perception import labeller as labeller_module
from mirage_model.perception.labeller import (
    LabelledPerception,
    Labeller,
    Vocabulary,
    words_of,
)

FRAMES = torch.rand(7, 3, 32, 48, generator=torch.Generator().manual_seed(1))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TIMES = torch.arange(7, dtype=torch.float64) / 8


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return save_small_labeller(tmp_path_factory.mktemp('labeller'))


@pytest.fixture(scope='module')
def labeller(folder) -> Labeller:
    return Labeller(folder)


def with_boxes(labeller: Labeller, folder: Path, found: dict[int, list[tuple[list[float], int]]]):
    """Return a labeller whose detector finds boxes of given words in given frames of `FRAMES`."""

    class Given(Labeller):
        def _detect(self, frame, words):
            index = next(i for i in range(len(FRAMES)) if torch.equal(FRAMES[i], frame))
            boxes = found.get(index, [])
            return (
                torch.tensor([box for box, _ in boxes]).view(-1, 4),
                torch.tensor([word for _, word in boxes], dtype=torch.long),
            )

    return Given(folder)


def test_detection_takes_each_word_from_its_own_tokens(labeller):
    """Compare with the detector's own post-processing on the prompt as its users write it."""
    boxes, found = labeller._detect(FRAMES[0], ('person', 'animal', 'sky'))
    text = labeller.tokenizer('person. animal. sky.', return_tensors='pt')
    assert text['input_ids'][0].tolist() == [101, 5, 1012, 6, 1012, 7, 1012, 102]
    pixels = F.interpolate(FRAMES[:1], (64, 96), mode='bilinear', antialias=True)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.inference_mode():
        output = labeller.detector(pixel_values=(pixels - mean) / std, **text)
    probability = output.logits[0, :, [1, 3, 5]].sigmoid()
    expected = []
    for row, box in zip(probability, output.pred_boxes[0]):
        if row.max() >= labeller.config.min_score:
            x, y, w, h = box.tolist()
            corners = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
            expected.append(([min(max(c, 0.0), 1.0) for c in corners], int(row.argmax())))
    assert expected and found.tolist() == [word for _, word in expected]
    torch.testing.assert_close(boxes, torch.tensor([box for box, _ in expected]))


def test_masks_reach_both_sides_of_a_detection(labeller, folder):
    """Detections are at frames 0, 3 and 6; a box in frame 3 is followed to 1 and to 5."""
    given = with_boxes(labeller, folder, {3: [([0.2, 0.2, 0.8, 0.9], 0)]})
    labels = given.label(FRAMES, TIMES)
    window, masks = given._follow(FRAMES, 3, torch.tensor([[0.2, 0.2, 0.8, 0.9]]))
    assert (window.start, window.stop) == (1, 6)
    assert torch.equal(labels.moving[1:6], masks[0])
    assert not labels.moving[[0, 6]].any() and not labels.sky.any()


@pytest.mark.parametrize('kind', ['edgetam_video', 'sam3_tracker_video'])
def test_other_trackers_follow_a_box(tmp_path, folder, kind):
    """The steps by hand: the pixels as the network's processor makes them, one box, no reverse."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / 'tracker')
    save_small_tracker(tmp_path / 'tracker', kind)
    labeller = Labeller(tmp_path)
    box = torch.tensor([[0.2, 0.2, 0.8, 0.9]])
    with torch.inference_mode():
        window, masks = labeller._follow(FRAMES, 0, box)
    assert (window.start, window.stop) == (0, 3) and masks.shape == (1, 3, 32, 48)
    mean, std = (0.5, 0.5) if 'sam3' in kind else IMAGENET
    pixels = F.interpolate(FRAMES[:3], (64, 64), mode='bilinear', antialias=True)
    mean, std = (torch.as_tensor(value).view(-1, 1, 1) for value in (mean, std))
    session = labeller._session(
        video=(pixels - mean) / std, video_height=32, video_width=48, dtype=torch.float32
    )
    session.add_point_inputs(
        session.obj_id_to_idx(0),
        0,
        {
            'point_coords': (box * 64).view(1, 1, 2, 2),
            'point_labels': torch.tensor([[[2, 3]]], dtype=torch.int32),
        },
    )
    session.obj_with_new_inputs = [0]
    with torch.inference_mode():
        for index in range(3):
            logits = labeller.tracker(inference_session=session, frame_idx=index).pred_masks
            expected = F.interpolate(logits.float(), (32, 48), mode='bilinear')[0, 0] > 0
            assert torch.equal(masks[0, index], expected), index


@pytest.fixture(scope='module')
def vocabulary(tmp_path_factory) -> Vocabulary:
    folder = tmp_path_factory.mktemp('vocabulary')
    save_small_vocabulary(folder)
    return Vocabulary(folder, max_new_tokens=6)


def test_vocabulary_names_what_the_model_answers(vocabulary):
    """The oracle takes the likeliest word after all before it, again and again."""
    inputs = vocabulary.processor(
        images=[(FRAMES[0] * 255).round().byte().movedim(0, -1).numpy()], return_tensors='pt'
    )
    count = int(inputs['image_grid_thw'].prod()) // 4
    text = '<|im_start|> user <|vision_start|>' + ' <|image_pad|>' * count + ' <|vision_end|>'
    question = vocabulary.tokenizer.encode(labeller_module._QUESTION, add_special_tokens=False)
    end = vocabulary.tokenizer.encode('<|im_end|> <|im_start|> assistant')
    ids = [*vocabulary.tokenizer.encode(text), *question, *end]
    said = []
    for _ in range(6):
        sequence = torch.tensor([ids + said])
        with torch.inference_mode():
            logits = vocabulary.model(
                input_ids=sequence,
                attention_mask=torch.ones_like(sequence),
                mm_token_type_ids=(sequence == vocabulary.model.config.image_token_id).int(),
                **{name: inputs[name] for name in ('pixel_values', 'image_grid_thw')},
            ).logits
        said.append(int(logits[0, -1].argmax()))
    answer = ' '.join(VOCABULARY_WORDS[number] for number in said if number > 6)
    assert vocabulary.name(FRAMES[0]) == words_of(answer)


def test_named_words_are_detected_for_a_while(folder):
    answers = iter([('forklift', 'person', 'sky'), ('balloon',)])

    class Answering:
        def name(self, frame):
            return next(answers)

    labeller = Labeller(folder)
    labeller.vocabulary = Answering()
    words = [labeller._dynamic_words(FRAMES[0], time) for time in (0.0, 29.0, 31.0, 40.0)]
    own = labeller.config.dynamic
    assert words == [(*own, 'forklift')] * 2 + [(*own, 'balloon')] * 2
    assert labeller.label(FRAMES, TIMES + 40).moving.shape == (7, 32, 48)


def test_an_unknown_tracker_is_named(tmp_path, folder):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / 'tracker' / 'config.json'
    path.write_text(path.read_text().replace('"sam2_video"', '"sam2"'))
    with pytest.raises(ValueError, match="type 'sam2', allowed are"):
        Labeller(tmp_path)


def test_sky_words_give_sky_where_nothing_moves(labeller, folder):
    box = [0.1, 0.1, 0.9, 0.9]
    sky = with_boxes(labeller, folder, {0: [(box, 2)]}).label(FRAMES, TIMES)
    moving = with_boxes(labeller, folder, {0: [(box, 1)]}).label(FRAMES, TIMES)
    both = with_boxes(labeller, folder, {0: [(box, 1), (box, 2)]}).label(FRAMES, TIMES)
    assert torch.equal(sky.sky, moving.moving) and not sky.moving.any()
    assert torch.equal(both.moving, moving.moving) and not both.sky.any()


def test_labels_join_those_of_the_perception(tmp_path, labeller, folder):
    model = load_model(save_first_guess_model(tmp_path))
    given = with_boxes(labeller, folder, {0: [([0.2, 0.2, 0.8, 0.9], 0)]})
    perception = LabelledPerception(model.perception, given)
    camera = Cameras(
        K=torch.tensor([[[40.0, 0.0, 23.5], [0.0, 40.0, 15.5], [0.0, 0.0, 1.0]]]),
        world_from_camera=torch.eye(4)[None],
        times=TIMES[:1],
        height=32,
        width=48,
    )
    plain = model.perception.estimate(FRAMES[:1], camera)
    estimate = perception.estimate(FRAMES[:1], camera)
    mask = given.label(FRAMES[:1], TIMES[:1]).moving
    assert torch.equal(estimate.moving, plain.moving | mask)
    assert (estimate.moving_probability[mask] == 1).all()
    torch.testing.assert_close(estimate.depth, plain.depth, equal_nan=True)


def test_a_model_says_whether_it_segments_dynamic_objects(tmp_path, folder):
    model = save_first_guess_model(tmp_path / 'model')
    assert load_model_info(model).segments_dynamic
    engine = Engine.from_folder(model, labeller=folder)
    assert isinstance(engine.model.perception, LabelledPerception)
    observation = Observation(
        image=(FRAMES[0].movedim(0, -1) * 255).byte().numpy(),
        K=np.array([[40.0, 0.0, 23.5], [0.0, 40.0, 15.5], [0.0, 0.0, 1.0]]),
        world_from_camera=np.eye(4),
        time=0.0,
        depth=np.full((32, 48), 2.0, np.float32),
    )
    assert engine.seed(observation) == 'sensor'


def test_a_labeller_segments_for_a_depth_model(tmp_path, folder):
    model = save_first_guess_model(tmp_path / 'model')
    shutil.rmtree(model / 'perception')
    save_depth_anything(model / 'perception', 'metric')
    fields = read_json(model / 'model.json')
    write_json(model / 'model.json', {**fields, 'perception': 'depth-anything'})
    plain = EngineOptions(model_folder=str(model))
    assert not Engine.from_options(plain).describe().segments_dynamic
    options = EngineOptions(model_folder=str(model), labeller=str(folder))
    assert Engine.from_options(options).describe().segments_dynamic
    assert not load_model_info(model).segments_dynamic
    shutil.copytree(folder, model / 'labeller')
    assert load_model_info(model).segments_dynamic
    assert Engine.from_folder(model).describe().segments_dynamic


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'dynamic': []}, 'no words'),
        ({'words': ['a']}, 'the fields are dynamic, sky'),
        ({'detect_every': 0}, '1 is the least'),
    ],
)
def test_an_invalid_configuration_is_named(tmp_path, fields, message):
    write_json(tmp_path / 'labeller.json', fields)
    with pytest.raises(ValueError, match=message):
        Labeller(tmp_path)


def test_a_missing_part_is_named(tmp_path):
    write_json(tmp_path / 'labeller.json', {})
    with pytest.raises(ValueError, match='detector: config.json is missing'):
        Labeller(tmp_path)


def test_an_answer_becomes_distinct_words():
    answer = 'Person, dog,\nOffice chair; person, a thing that nobody would ever detect, 3 cars.'
    assert words_of(answer) == ('person', 'dog', 'office chair', 'cars')
