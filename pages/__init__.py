"""The pages: one script each, views of files. They turn clicks into a RunSpec and never train anything themselves."""
