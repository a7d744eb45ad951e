"""Random changes to training inputs. Each is a pure function of (seed, epoch, step)."""
