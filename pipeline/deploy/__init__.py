"""Files that start a cluster elsewhere, made from the configuration's section `cluster`."""
