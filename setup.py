"""Metadata of the distribution; pyproject.toml holds only the tools' settings."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
README = HERE / "README.md"

# tensorflow-text links against one TensorFlow release: 2.21.0 does not import with tensorflow
# 2.21, 2.21.1 does. TensorFlow 2.21 no longer installs TensorBoard, so an extra names it.
FEATURES = {
    "text": ["tensorflow-text>=2.21.1,<2.22", "sentencepiece", "sacrebleu", "babel"],
    "tensorboard": ["tensorboard~=2.21"],
    "serving": ["tensorflow-serving-api", "grpcio", "starlette", "uvicorn", "prometheus-client"],
    "cli": ["click", "rich", "pyyaml", "matplotlib"],
    # tf2onnx 1.17 runs beside NumPy 2.
    "convert": ["ctranslate2>=4.8,<5", "onnx", "onnxruntime", "tf2onnx>=1.17", "ai-edge-litert>=2"],
}
TOOLS = {
    # setuptools: a test reads the metadata out of setup.py. keras-hub: a peer that tests compare with.
    # selenium: drives the browser in which the translation page is tested.
    "test": [
        "pytest>=8",
        "pytest-xdist",
        "hypothesis",
        "keras-hub",
        "ruff",
        "import-linter",
        "pydoclint",
        "setuptools",
        "selenium",
    ],
    # What Keras can run on in place of TensorFlow. The pin keeps torch at one that is built without CUDA where the
    # package index has such a build.
    "backends": ["jax>=0.10,<0.11", "torch==2.13.0"],
    "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.5", "mkdocstrings-python"],
}

setup(
    name="keras-attention-transformer",
    version="0.1.0",
    description="The Transformer of 'Attention Is All You Need' as Keras layers, "
    "from two text files to a served model.",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="The keras_attention authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["attention", "transformer", "keras", "tensorflow", "translation"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    py_modules=["keras_attention_command"],
    packages=find_packages(include=["keras_attention", "keras_attention.*"]),
    package_data={"keras_attention": ["py.typed", "server/page.html"]},
    install_requires=["keras>=3.15,<4", "tensorflow>=2.21,<2.22", "numpy"],
    extras_require={
        **FEATURES,
        **TOOLS,
        # Every feature; the tools of the people who change the library stay apart.
        "all": sorted({package for packages in FEATURES.values() for package in packages}),
    },
    entry_points={"console_scripts": ["keras-attention = keras_attention_command:main"]},
)
