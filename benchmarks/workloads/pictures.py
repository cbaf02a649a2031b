def draw(rows, output, folder):
    pass
