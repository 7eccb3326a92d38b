"""catonnx in Hugging Face Optimum: a class like `ORTQuantizer`, and commands of `optimum-cli`.

Nothing here imports Optimum until `optimum-cli` asks for its commands.
"""
