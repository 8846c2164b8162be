"""The `hysparse` command: main.py and one verb a file. Installed as pyhysparse.cli."""
