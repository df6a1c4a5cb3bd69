"""The controller: experiment file -> plan -> steps on an executor -> results. Loads no torch, ever."""
