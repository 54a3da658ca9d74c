"""Face packs: the networks that find and recognise faces, run by onnxruntime or InsightFace."""
