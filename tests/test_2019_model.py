"""The whole-model HDF5 file published in 2019: the layout of Keras 2.2.4, made small here."""

import json

import h5py
import numpy as np
import pytest

import model
import recognition
import retrieval
from data.landmarks import ClassTable, read_2019_classes
from data.sources import TRAIN_CSV
from data.submissions import read_recognition_submission, read_retrieval_submission
from utils import ExpectedError

NUM_CHANNELS = 6


def layer(class_name, name, inbound, **config):
    nodes = [[[source, 0, 0, {}] for source in inbound]] if inbound else []
    config = {"name": name, "trainable": True, **config}
    return {"name": name, "class_name": class_name, "config": config, "inbound_nodes": nodes}


def old_config(num_classes, image_size):
    """Writes the graph as Keras 2.2.4 did: convolution, batch normalisation, pooling, softmax."""
    layers = [
        layer(
            *("InputLayer", "input_1", []),
            batch_input_shape=[None, image_size, image_size, 3], dtype="float32", sparse=False,
        ),
        layer(
            *("Conv2D", "conv1", ["input_1"]),
            filters=NUM_CHANNELS, kernel_size=[3, 3], strides=[2, 2], padding="same",
            data_format="channels_last", dilation_rate=[1, 1], activation="linear", use_bias=True,
        ),
        layer(
            *("BatchNormalization", "bn_conv1", ["conv1"]),
            axis=3, momentum=0.99, epsilon=0.001, center=True, scale=True,
        ),
        layer(
            "GlobalMaxPooling2D", "global_max_pooling2d_1", ["bn_conv1"],
            data_format="channels_last",
        ),
        layer(
            *("Dense", "dense_1", ["global_max_pooling2d_1"]),
            units=num_classes, activation="softmax", use_bias=True,
        ),
    ]  # fmt: skip
    ends = {"input_layers": [["input_1", 0, 0]], "output_layers": [["dense_1", 0, 0]]}
    return {"class_name": "Model", "config": {"name": "model_1", "layers": layers, **ends}}


def write_2019_model(path, num_classes, image_size=16):
    """Writes a model file as Keras 2.2.4 did and returns its weights by name."""
    rng = np.random.default_rng(5)
    weights = {
        "conv1/kernel:0": rng.normal(0, 0.1, (3, 3, 3, NUM_CHANNELS)),
        "conv1/bias:0": rng.normal(0, 1, NUM_CHANNELS),
        "bn_conv1/gamma:0": rng.uniform(0.5, 1.5, NUM_CHANNELS),
        "bn_conv1/beta:0": rng.normal(0, 1, NUM_CHANNELS),
        "bn_conv1/moving_mean:0": rng.normal(0, 10, NUM_CHANNELS),
        "bn_conv1/moving_variance:0": rng.uniform(300, 900, NUM_CHANNELS),
        "dense_1/kernel:0": rng.normal(0, 1, (NUM_CHANNELS, num_classes)),
        "dense_1/bias:0": rng.normal(0, 1, num_classes),
    }
    names = ["input_1", "conv1", "bn_conv1", "global_max_pooling2d_1", "dense_1"]
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = b"2.2.4"
        file.attrs["backend"] = b"tensorflow"
        file.attrs["model_config"] = json.dumps(old_config(num_classes, image_size)).encode()
        # The published file carries a metric of its author's, which nobody can load any more.
        file.attrs["training_config"] = json.dumps(
            {
                "loss": "binary_crossentropy",
                "metrics": ["accuracy_class"],
                "sample_weight_mode": None,
            }
        ).encode()
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name in names]
        group.attrs["backend"] = b"tensorflow"
        group.attrs["keras_version"] = b"2.2.4"
        for name in names:
            of_layer = [key for key in weights if key.startswith(f"{name}/")]
            layer_group = group.create_group(name)
            layer_group.attrs["weight_names"] = [f"{key}".encode() for key in of_layer]
            for key in of_layer:
                layer_group.create_dataset(key, data=weights[key].astype(np.float32))
    return weights


def forward(weights, images):
    """Computes pooled vector and softmax of the small network in plain NumPy."""
    padded = np.pad(images.astype(np.float64), ((0, 0), (0, 1), (0, 1), (0, 0)))  # "same", stride 2
    size = images.shape[1] // 2
    pixels = np.stack(
        [padded[:, i : i + 2 * size : 2, j : j + 2 * size : 2] for i in range(3) for j in range(3)],
        axis=3,
    ).reshape(len(images), size, size, 27)
    maps = pixels @ weights["conv1/kernel:0"].reshape(27, -1) + weights["conv1/bias:0"]
    scale = weights["bn_conv1/gamma:0"] / np.sqrt(weights["bn_conv1/moving_variance:0"] + 1e-3)
    maps = (maps - weights["bn_conv1/moving_mean:0"]) * scale + weights["bn_conv1/beta:0"]
    pooled = maps.max(axis=(1, 2))
    logits = pooled @ weights["dense_1/kernel:0"] + weights["dense_1/bias:0"]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return pooled, powers / powers.sum(axis=1, keepdims=True)


def test_the_classes_of_2019_go_by_their_first_row_without_the_one_left_out(tmp_path):
    order = [500, 138982, 7, 90, 500]  # 90 has too few images
    rows = [landmark for landmark in order for _ in range(3 if landmark == 90 else 20)]
    lines = [f"{number:016x},u,{landmark}" for number, landmark in enumerate(rows)]
    (tmp_path / "train.csv").write_text("id,url,landmark_id\n" + "\n".join(lines) + "\n")
    assert read_2019_classes(tmp_path / "train.csv").landmark_ids.tolist() == [500, 7]


def test_the_2019_file_is_used_with_its_own_graph_and_raw_pixels(tmp_path):
    import model

    weights = write_2019_model(tmp_path / "resnet50.model", num_classes=4)
    classes = ClassTable(np.array([40, 10, 30, 20]))
    recogniser = model.load_recogniser(tmp_path / "resnet50.model", lambda: classes)
    assert recogniser.image_size == 16
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    predictor = model.build_predictor(recogniser.classifier)
    class_indices, confidences, descriptors = predictor.predict_on_batch(images)
    pooled, probabilities = forward(weights, images)
    np.testing.assert_allclose(descriptors, pooled, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(confidences, probabilities.max(axis=1), rtol=1e-4)
    assert class_indices.tolist() == probabilities.argmax(axis=1).tolist()


def test_a_2019_file_of_other_landmarks_is_refused(tmp_path):

    write_2019_model(tmp_path / "resnet50.model", num_classes=4)
    with pytest.raises(
        ExpectedError, match="4 outputs; expected 3, one for each of the classes of 2019"
    ):
        model.load_recogniser(tmp_path / "resnet50.model", lambda: ClassTable(np.arange(3)))


def test_the_2019_file_predicts_and_retrieves(data_set, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("data.landmarks.MIN_IMAGES", 5)
    classes = read_2019_classes(data_set.folder / TRAIN_CSV)
    path = tmp_path / "resnet50.model"
    write_2019_model(path, len(classes))
    options = ["--source", str(data_set.folder), "--model", str(path), "--output", str(tmp_path)]
    recognition.main(["predict", *options])
    predictions = read_recognition_submission(tmp_path / "recognition_submission.csv")
    assert {made[0] for made in predictions.values() if made} <= set(classes.landmark_ids.tolist())
    retrieval.main([*options, "--parts", "2"])
    assert any(read_retrieval_submission(tmp_path / "retrieval_submission.csv").values())
    assert "mAP@100" in capsys.readouterr().out
