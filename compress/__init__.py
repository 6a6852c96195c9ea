"""From a teacher and a student to a compact trained student: data, training, distillation, and the pipeline itself."""
