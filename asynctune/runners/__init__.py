"""Where trials run: `inline` in the driver's event loop, `process` in worker processes.

Owns the life of what runs a trial, and how its reports reach the driver. What a report means is the driver's.
"""
