"""The trained network of an adapter: image projections and the K/V projections of every site."""
