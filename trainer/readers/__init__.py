"""What an adapter reads of a reference: of its picture by an image encoder, of its faces by a recogniser."""
