"""What onnxruntime-genai needs beside a model: `genai_config.json`, a tokenizer that it reads right, our operators."""
