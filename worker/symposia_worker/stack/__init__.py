"""The embedded stack of one folder: broker, store, coordinator, pools and Flower, started, watched and stopped as one."""
