// What the two kernels share that spread a channel's states over eight lanes: scan_spread.cu and scan_spread_backward.cu. Follows
// scan_common.cu.
//
// A warp takes four channels. Lane 8 c + 4 h + q holds two states, 8 h + 2 q and the next, of channel c: the layout of the tensor cores'
// results, which are also operands of the next product in it.

#define SPREAD 4            // channels of a warp
#define ROW (LANES / 8)     // pieces of 16 bytes
#define NEVER (-(1 << 30))  // steps before the end that no round makes positive

// Where half ``half`` of row ``row`` of B or C lies: halves of rows exchanged so that matrices of them lie in all banks.
INLINE int projection(int row, int half) { return (2 * row + (half ^ (row >> 2 & 1))) * 8; }

// Sixteen bytes that a thread copies every round, from ``at`` or to it.
template <typename Pointer>
struct Move {
    Pointer at;
    i64 step;
    int left, change;  // steps before the end
    int cell;          // in shared memory

    INLINE void advance() {
        at += step;
        left += change;
    }
};

// shift: from the times of a round to those of the next.
template <typename Pointer>
INLINE Move<Pointer> move_rows(Pointer tensor, i64 time_stride, int row, int column, int cell, bool wanted, Steps steps, int shift, const Place &at) {
    int time = steps.start + row * steps.sign;
    return {tensor + time * time_stride + column, shift * time_stride, wanted ? at.length - time : NEVER, -shift, cell};
}
