import itertools

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_sde.training import (
    ImageFormat,
    ImagesInMemory,
    ImagesOnTheFly,
    iterate_batches,
    load_images,
    open_source,
    to_data_range,
)
from diffusers_sde.training.data import train_files

GREY = ImageFormat(size=(8, 8), channels=1)


def picture(seed, size=(8, 8), mode="L"):
    generator = np.random.default_rng(seed)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    return Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture
def load(cache_dir):
    return lambda path, **options: load_images(train_data_dir=str(path), cache_dir=cache_dir, **options)


def arrays(dataset):
    return [np.asarray(row["image"]) for row in dataset]


def test_a_folder_of_splits_gives_the_train_split(load, data_dir):
    dataset = load(data_dir)
    assert dataset.column_names == ["image"]
    assert len(dataset) == 10
    assert all(array.shape == (8, 8) for array in arrays(dataset))


def test_a_single_parquet_file_is_taken_whatever_its_name(load, data_dir):
    assert len(load(data_dir / "test.parquet")) == 3


def test_all_shards_of_the_train_split_are_found(tmp_path, write_parquet, load):
    for i in range(2):
        write_parquet(tmp_path / "data" / f"train-0000{i}-of-00002.parquet", [picture(i)])
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", [picture(9)])
    assert [array.tolist() for array in arrays(load(tmp_path))] == [np.asarray(picture(i)).tolist() for i in range(2)]


def test_files_of_no_split_are_all_taken_but_held_out_ones_never(tmp_path, write_parquet):
    for name in ("a.parquet", "b.parquet", "test.parquet", "val/c.parquet"):
        write_parquet(tmp_path / name, [picture(0)])
    assert train_files(tmp_path, "parquet") == [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]


def test_a_folder_of_held_out_splits_alone_is_refused(tmp_path, write_parquet, load):
    write_parquet(tmp_path / "test.parquet", [picture(0)])
    with pytest.raises(ValueError, match=r"holds only test.parquet; a train split is needed"):
        load(tmp_path)


@pytest.mark.parametrize("labelled", [False, True])
def test_folders_of_images(tmp_path, load, labelled):
    for i in range(4):
        folder = tmp_path / ("ab"[i % 2] if labelled else ".")
        folder.mkdir(exist_ok=True)
        picture(i, mode="RGB").save(folder / f"{i}.png")
    dataset = load(tmp_path)
    assert dataset.column_names == ["image"]
    assert sorted(array.tolist() for array in arrays(dataset)) == sorted(
        np.asarray(picture(i, mode="RGB")).tolist() for i in range(4)
    )


def test_sources_that_do_not_exist_or_hold_no_images(tmp_path, load):
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no image and no parquet file under"):
        load(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"it holds \['notes.txt'\]"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"notes.txt; allowed are a .parquet or .npz file, or a folder"):
        load(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="neither of --dataset_name and --train_data_dir"):
        load_images()
    with pytest.raises(ValueError, match="both of --dataset_name and --train_data_dir"):
        load_images(dataset_name="a", train_data_dir="b")


def test_a_name_that_is_neither_here_nor_on_the_hub(tmp_path, monkeypatch, cache_dir):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"the train split of .*nowhere cannot be read: .* Give a folder or file that"
    ):
        load_images(dataset_name=str(tmp_path / "nowhere"), cache_dir=cache_dir)


def test_the_image_column_is_found_by_type_not_by_name(tmp_path, write_parquet, load):
    write_parquet(tmp_path / "train.parquet", [picture(0)], column="photo")
    assert load(tmp_path).column_names == ["image"]
    assert load(tmp_path, image_column="photo").column_names == ["image"]


def test_encoded_bytes_are_images_when_named(tmp_path, load):
    picture(0).save(tmp_path / "image.png")
    encoded = (tmp_path / "image.png").read_bytes()
    datasets.Dataset.from_dict({"blob": [encoded]}).to_parquet(tmp_path / "train.parquet")
    np.testing.assert_array_equal(arrays(load(tmp_path, image_column="blob"))[0], np.asarray(picture(0)))
    with pytest.raises(ValueError, match=r"no column of images; it has: blob \(binary\)"):
        load(tmp_path)


def test_wrong_columns_are_refused_with_a_list_of_what_is_there(data_dir, load):
    with pytest.raises(ValueError, match=r"no column 'photo'; it has: label \(int64\), image"):
        load(data_dir, image_column="photo")
    with pytest.raises(ValueError, match=r"column 'label' holds no images; the data set has: label \(int64\), image"):
        load(data_dir, image_column="label")


def test_a_data_set_without_images_lists_its_columns(tmp_path, load):
    datasets.Dataset.from_dict({"text": ["a"], "length": [1]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"no column of images; it has: text \(string\), length \(int64\)"):
        load(tmp_path)


def test_an_empty_data_set_is_refused(tmp_path, write_parquet, load):
    write_parquet(tmp_path / "train.parquet", [])
    with pytest.raises(ValueError, match=r"train split of .* (is empty|cannot be read)"):
        load(tmp_path)


def first_batches(source, count=4, **options):
    iterator = iterate_batches(source, batch_size=4, **options)
    return torch.stack(list(itertools.islice(iterator, count)))


@pytest.mark.parametrize("num_threads", [0, 2])
def test_on_the_fly_and_in_memory_give_the_same_batches(data_dir, load, num_threads):
    dataset = load(data_dir)
    in_memory = open_source(dataset, GREY, show_progress=False)
    on_the_fly = open_source(dataset, GREY, memory_limit=0, num_threads=num_threads)
    assert isinstance(in_memory, ImagesInMemory)
    assert isinstance(on_the_fly, ImagesOnTheFly)
    assert in_memory.describe().startswith("10 images, in memory")
    assert on_the_fly.describe() == "10 images, decoded on the fly"
    batches = first_batches(in_memory)
    assert batches.dtype == torch.uint8
    assert batches.shape == (4, 4, 1, 8, 8)
    assert torch.equal(batches, first_batches(on_the_fly))
    assert torch.equal(batches[2:], first_batches(on_the_fly, 2, first_micro_step=2))


def test_reading_leaves_the_global_generator_alone(data_dir, load):
    source = open_source(load(data_dir), GREY, memory_limit=0)
    before = torch.random.get_rng_state()
    first_batches(source)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_random_crops_change_by_epoch_and_are_the_same_on_resume(tmp_path, write_parquet, load):
    write_parquet(tmp_path / "train.parquet", [picture(i, size=(30, 10)) for i in range(4)])
    dataset = load(tmp_path)
    assert isinstance(
        open_source(dataset, ImageFormat((8, 8), 1, center_crop=True), show_progress=False), ImagesInMemory
    )
    source = open_source(dataset, GREY, show_progress=False)
    assert isinstance(source, ImagesOnTheFly)
    batches = first_batches(source)
    assert len({image.numpy().tobytes() for image in batches.flatten(0, 1)}) > 4
    assert torch.equal(batches[1:], first_batches(source, 3, first_micro_step=1))


def test_grey_images_for_a_colour_network_and_back(data_dir, load):
    grey = load(data_dir)
    colour = open_source(grey, ImageFormat((8, 8), 3), show_progress=False).images
    assert torch.equal(colour, open_source(grey, GREY, show_progress=False).images.expand(-1, 3, -1, -1))
    with pytest.raises(ValueError, match=r"3 channels \(mode 'RGB'\), the network takes 1"):
        open_source(load(data_dir / "test.parquet"), GREY, show_progress=False)


def test_data_ranges():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    torch.testing.assert_close(to_data_range(images, True).flatten(), torch.tensor([0.0, 0.2, 1.0]))
    torch.testing.assert_close(to_data_range(images, False).flatten(), torch.tensor([-1.0, -0.6, 1.0]))


def test_only_the_chosen_images_are_mirrored():
    images = torch.arange(12, dtype=torch.uint8).reshape(2, 1, 2, 3)
    flipped = to_data_range(images, True, torch.tensor([False, True]))
    torch.testing.assert_close(flipped[0], to_data_range(images, True)[0])
    torch.testing.assert_close(flipped[1], to_data_range(images, True)[1].flip(-1))


def test_uniform_dequantization():
    """(image + u) / 256: values of one level stay below those of the next."""
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    for u in (0.0, 0.5, 1 - 2**-10):
        x = to_data_range(images, True, dequantization=torch.full((1, 1, 1, 3), u))
        torch.testing.assert_close(x.flatten(), (torch.tensor([0.0, 51.0, 255.0]) + u) / 256)
    assert to_data_range(images, False, dequantization=torch.zeros(1, 1, 1, 3)).min() == -1


def test_a_central_square_is_cut_out_first(tmp_path, write_parquet, load):
    """As the official pipeline does for CelebA: 20 x 16 pixels, of which the central 8 x 8 are white."""
    array = np.zeros((20, 16), np.uint8)
    array[6:14, 4:12] = 255
    write_parquet(tmp_path / "train.parquet", [Image.fromarray(array)])
    source = open_source(load(tmp_path), ImageFormat((4, 4), 1, crop_size=8), show_progress=False)
    assert (source.images == 255).all()
    with pytest.raises(ValueError, match="20 x 16 pixels, from which no square of 18 x 18 can be cut"):
        open_source(load(tmp_path), ImageFormat((4, 4), 1, crop_size=18), show_progress=False)


NPZ_SHAPES = {
    "grey": (6, 8, 12),
    "grey with axis": (6, 8, 12, 1),
    "colour": (6, 8, 12, 3),
    "seven channels": (6, 8, 12, 7),
}


@pytest.mark.parametrize("shape", NPZ_SHAPES.values(), ids=NPZ_SHAPES)
def test_npz_of_the_networks_size_is_taken_as_it_is(tmp_path, load, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "images.npz", array)
    channels = shape[3] if len(shape) == 4 else 1
    source = open_source(load(tmp_path / "images.npz"), ImageFormat((8, 12), channels))
    expected = torch.from_numpy(array.reshape(6, 8, 12, channels)).permute(0, 3, 1, 2)
    assert torch.equal(source.images, expected)


def test_npz_of_another_size_goes_the_way_of_pictures(tmp_path, load, write_parquet):
    pictures = [picture(i, size=(12, 10), mode="RGB") for i in range(3)]
    np.savez(tmp_path / "images.npz", images=np.stack([np.asarray(p) for p in pictures]), labels=np.arange(3))
    write_parquet(tmp_path / "train.parquet", pictures)
    image_format = ImageFormat((8, 8), 3, center_crop=True)
    one, other = (open_source(load(tmp_path / name), image_format).images for name in ("images.npz", "train.parquet"))
    assert torch.equal(one, other)


def test_npz_files_that_hold_no_images(tmp_path, load):
    path = tmp_path / "x.npz"
    with pytest.raises(ValueError, match="does not exist"):
        load(path)
    np.savez(path, a=np.zeros((2, 4, 4)), b=np.arange(3))
    with pytest.raises(ValueError, match="it has the arrays a, b; name that of the images: --image_column"):
        load(path)
    with pytest.raises(ValueError, match=r"array 'a' of .* is float64 of shape \(2, 4, 4\); images are uint8"):
        load(path, image_column="a")
    path.write_bytes(b"no zip file")
    with pytest.raises(ValueError, match=r"x.npz cannot be used"):
        load(path)
    np.savez(path, np.array([{"code": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"x.npz cannot be used.*allow_pickle=False"):
        load(path)
    np.savez(path, np.zeros((2, 4, 4, 5), np.uint8))
    with pytest.raises(ValueError, match="4 x 4 pixels and 5 channels; only images of 1 to 4 channels are resized"):
        open_source(load(path), ImageFormat((8, 8), 5), show_progress=False)


def test_arrow_files_and_folders_of_save_to_disk(tmp_path, load, data_dir):
    expected = [array.tolist() for array in arrays(load(data_dir))]
    saved = datasets.load_dataset("parquet", data_files={"train": str(data_dir / "train.parquet")})
    saved.save_to_disk(tmp_path / "both")
    saved["train"].save_to_disk(tmp_path / "one")
    for name in ("both", "one"):
        assert [array.tolist() for array in arrays(load(tmp_path / name))] == expected
    (tmp_path / "plain").mkdir()
    (arrow,) = (tmp_path / "one").glob("*.arrow")
    (tmp_path / "plain" / "train.arrow").write_bytes(arrow.read_bytes())
    assert [array.tolist() for array in arrays(load(tmp_path / "plain"))] == expected
    datasets.DatasetDict({"test": saved["train"]}).save_to_disk(tmp_path / "other")
    with pytest.raises(ValueError, match="it has the splits test, but no train"):
        load(tmp_path / "other")


@pytest.fixture
def open_stream(load, data_dir):
    def make(buffer_size=4, **options):
        dataset = load(data_dir, streaming=True)
        return open_source(dataset, GREY, shuffle_buffer_size=buffer_size, **options)

    return make


@pytest.mark.parametrize("num_threads", [0, 2])
def test_every_epoch_of_a_stream_has_every_image_in_another_order(open_stream, data_dir, load, num_threads):
    stream = open_stream(num_threads=num_threads)
    assert stream.num_images is None
    seen = [image.numpy().tobytes() for image in first_batches(stream, 8).flatten(0, 1)]
    assert stream.num_images == 10
    everything = sorted(array.tobytes() for array in arrays(load(data_dir)))
    epochs = [seen[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_stream_goes_on_from_any_place(open_stream):
    whole = first_batches(open_stream(), 8)
    for first in (1, 3, 6):
        assert torch.equal(whole[first:], first_batches(open_stream(), 8 - first, first_micro_step=first))
        told = open_stream()
        told.num_images = 10  # as a checkpoint tells it
        assert torch.equal(whole[first:], first_batches(told, 8 - first, first_micro_step=first))


def test_processes_share_a_stream(open_stream):
    def batches(count, batch_size, **options):
        iterator = iterate_batches(open_stream(), batch_size=batch_size, **options)
        return list(itertools.islice(iterator, count))

    one = batches(5, 6)
    parts = [batches(5, 3, process_index=r, num_processes=2) for r in range(2)]
    assert all(torch.equal(torch.cat(pair), whole) for *pair, whole in zip(*parts, one, strict=True))


def test_an_error_in_a_thread_reaches_the_caller(tmp_path, write_parquet, load):
    write_parquet(tmp_path / "train.parquet", [picture(i, mode="RGB") for i in range(6)])
    source = open_source(load(tmp_path), GREY, memory_limit=0, num_threads=2)
    with pytest.raises(ValueError, match="3 channels"):
        first_batches(source, 1)
