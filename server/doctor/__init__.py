"""`neuronx-serve doctor`: whether this machine can serve the configuration, and what to do where it cannot.

capture.py       what was read from the system, as plain values
probes.py        the reading: thin, bounded in time, changes nothing
releases.py      which package versions belong to one release of the Neuron SDK
devices.py, packages.py, variables.py, host.py, checkpoints.py
                 the checks: pure, from settings and captured values to findings
examination.py   all of them, in the order in which they are worth reading
"""
