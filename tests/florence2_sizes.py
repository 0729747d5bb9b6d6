"""The real geometries of Florence-2, for tests with random weights (from the published configurations)."""

BASE = {
    "vision_config": {
        "depths": (1, 1, 9, 1), "embed_dim": (128, 256, 512, 1024), "num_heads": (4, 8, 16, 32),
        "num_groups": (4, 8, 16, 32), "patch_stride": (4, 2, 2, 2), "window_size": 12, "projection_dim": 768,
    },
    "text_config": {
        "model_type": "bart", "d_model": 768, "encoder_layers": 6, "encoder_attention_heads": 12,
        "encoder_ffn_dim": 3072, "decoder_layers": 6, "decoder_attention_heads": 12, "decoder_ffn_dim": 3072,
        "max_position_embeddings": 1024, "vocab_size": 51289,
    },
}  # fmt: skip
LARGE = {
    "vision_config": {
        "depths": (1, 1, 9, 1), "embed_dim": (256, 512, 1024, 2048), "num_heads": (8, 16, 32, 64),
        "num_groups": (8, 16, 32, 64), "patch_stride": (4, 2, 2, 2), "window_size": 12, "projection_dim": 1024,
    },
    "text_config": {
        "model_type": "bart", "d_model": 1024, "encoder_layers": 12, "encoder_attention_heads": 16,
        "encoder_ffn_dim": 4096, "decoder_layers": 12, "decoder_attention_heads": 16, "decoder_ffn_dim": 4096,
        "max_position_embeddings": 4096, "vocab_size": 51289,
    },
}  # fmt: skip
