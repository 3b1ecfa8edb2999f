//! A matrix in device memory, as the kernels and cublasLt get it. Checks that it is within its buffer.

use super::memory::BufferView;

/// A row-major matrix in device memory. `ld` is the number of elements from one row to the next.
#[derive(Debug, Clone, Copy)]
pub struct MatrixView<'a> {
    /// From the first element of the matrix on.
    pub view: BufferView<'a>,
    pub rows: usize,
    pub cols: usize,
    /// Elements from one row to the next, at least `cols`.
    pub ld: usize,
}

impl<'a> MatrixView<'a> {
    /// A matrix without gaps between its rows.
    ///
    /// # Panics
    ///
    /// If the view is too short.
    pub fn dense(view: BufferView<'a>, rows: usize, cols: usize) -> MatrixView<'a> {
        MatrixView::with_ld(view, rows, cols, cols)
    }

    /// A matrix with `ld` elements from one row to the next.
    ///
    /// # Panics
    ///
    /// If `ld` is less than `cols`, or if the view is too short.
    pub fn with_ld(view: BufferView<'a>, rows: usize, cols: usize, ld: usize) -> MatrixView<'a> {
        let required_len = if rows * cols == 0 { 0 } else { (rows - 1) * ld + cols };
        assert!(
            cols <= ld && required_len <= view.len,
            "{rows} x {cols} (ld {ld}) does not fit {} elements",
            view.len
        );
        MatrixView { view, rows, cols, ld }
    }

    /// The columns `from` to `from + cols`.
    ///
    /// # Panics
    ///
    /// If the matrix has fewer columns.
    pub fn column_range(self, from: usize, cols: usize) -> MatrixView<'a> {
        assert!(
            from + cols <= self.cols,
            "{cols} columns from column {from} are not within {} columns",
            self.cols
        );
        MatrixView { view: self.view.skip(from.min(self.view.len)), cols, ..self }
    }

    /// The rows `from` to `from + rows`.
    ///
    /// # Panics
    ///
    /// If the matrix has fewer rows.
    pub fn row_range(self, from: usize, rows: usize) -> MatrixView<'a> {
        assert!(from + rows <= self.rows, "{rows} rows from row {from} are not within {} rows", self.rows);
        MatrixView { view: self.view.skip(from * self.ld), rows, ..self }
    }
}
