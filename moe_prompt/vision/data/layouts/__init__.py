"""How a task lies in a folder: folders of pictures, lists, arrays, Parquet."""
