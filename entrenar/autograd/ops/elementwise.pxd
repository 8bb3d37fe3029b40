from entrenar.autograd.tensor cimport Tensor

cdef void add_rows(Tensor out, Tensor row) noexcept
