"""Models of the library transformers: how they are opened, sized by the data, called and divided."""
