"""The settings of an export are what TensorFlow Serving reads; the commands of its page are what a shell reads."""

import json
import re
import shlex
import shutil
import subprocess

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from keras_attention.serving.server_files import MAX_BATCH_SIZE, server_files

pytestmark = pytest.mark.tensorflow


def server_messages():
    """The messages of TensorFlow Serving that its Python package leaves out, by their published fields."""
    file = descriptor_pb2.FileDescriptorProto(name="settings.proto", package="settings", syntax="proto3")
    scalar = descriptor_pb2.FieldDescriptorProto
    kinds = {"int64": scalar.TYPE_INT64, "string": scalar.TYPE_STRING, "bool": scalar.TYPE_BOOL}

    def add(message, **fields):
        declared = file.message_type.add(name=message)
        for number, (name, kind) in enumerate(fields.items(), 1):
            repeated = kind.startswith("repeated ")
            kind = kind.removeprefix("repeated ")
            field = declared.field.add(name=name, number=number, type=kinds.get(kind, scalar.TYPE_MESSAGE))
            field.label = scalar.LABEL_REPEATED if repeated else scalar.LABEL_OPTIONAL
            if kind not in kinds:
                field.type_name = f".settings.{kind}"

    add("Int64Value", value="int64")
    add("StringValue", value="string")
    numbers = ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")
    add(
        "BatchingParameters",
        **dict.fromkeys(numbers, "Int64Value"),
        thread_pool_name="StringValue",
        allowed_batch_sizes="repeated int64",
        pad_variable_length_inputs="bool",
    )
    add("PrometheusConfig", enable="bool", path="string")
    add("MonitoringConfig", prometheus_config="PrometheusConfig")
    return message_factory.GetMessages([file], pool=descriptor_pool.DescriptorPool())


def test_batching_and_monitoring_are_settings_that_a_server_reads(tmp_path):
    messages, files = server_messages(), server_files(tmp_path / "en-de")
    batching = messages["settings.BatchingParameters"]()
    text_format.Parse(files["batching.config"], batching)
    assert batching.max_batch_size.value == MAX_BATCH_SIZE
    assert batching.num_batch_threads.value >= 1
    assert batching.max_enqueued_batches.value >= 1
    # Ids of different lengths must not be filled up with the first element, as a server would.
    assert not batching.pad_variable_length_inputs
    monitoring = messages["settings.MonitoringConfig"]()
    text_format.Parse(files["monitoring.config"], monitoring)
    assert monitoring.prometheus_config.enable
    assert monitoring.prometheus_config.path.startswith("/")
    with pytest.raises(text_format.ParseError):
        text_format.Parse("max_batch_sizes { value: 3 }", batching)  # these messages would notice


@pytest.mark.parametrize("name", ["en-de", 'en de\'s "ü" \\ $HOME'])
def test_models_config_names_the_model_where_the_container_has_it(name, tmp_path):
    pytest.importorskip("tensorflow_serving.apis", reason="needs tensorflow-serving-api")
    from tensorflow_serving.config import model_server_config_pb2

    text = server_files(tmp_path / name)["models.config"]
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == (name, f"/models/{name}", "tensorflow")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("name", ["en-de", 'en de\'s "ü" \\ $HOME'])
def test_the_commands_of_the_readme_are_what_a_shell_reads(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    blocks = re.findall(r"```bash\n(.*?)```", server_files(folder)["README.md"], flags=re.DOTALL)
    words = []
    for block in blocks:
        program = shlex.split(block)[0]
        script = f'{program}() {{ printf "%s\\0" "$@"; }}\n{block}'
        done = subprocess.run(["bash", "-euc", script], cwd=folder, capture_output=True, check=True)
        words.append([program, *done.stdout.decode().split("\0")[:-1]])
    docker, binary, curl = words
    assert (docker[0], binary[0], curl[0]) == ("docker", "tensorflow_model_server", "curl")
    assert f"{folder}:/models/{name}:ro" in docker
    assert f"--model_config_file=/models/{name}/models.config" in docker
    assert f"--batching_parameters_file=/models/{name}/batching.config" in docker
    assert {f"--model_name={name}", f"--model_base_path={folder}"} <= set(binary)
    assert f"--monitoring_config_file={folder}/monitoring.config" in binary
    assert json.loads(curl[2]) == {"inputs": {"source": ["How are you?", "Good night."]}}
    assert re.fullmatch(r"localhost:8501/v1/models/[\w%.-]+:predict", curl[3])
