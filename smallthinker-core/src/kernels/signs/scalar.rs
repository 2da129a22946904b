//! The reference.

use super::SignsJob;

pub(in crate::kernels) fn signs(mut job: SignsJob<'_>) {
    for (i, out) in std::mem::take(&mut job.out).iter_mut().enumerate() {
        let mut picked = 0;
        for (word, z) in job.row(i).iter().zip(job.z) {
            let word = u64::from_le_bytes(*word);
            for (bit, &z) in z.iter().enumerate() {
                // All ones or none, as a branch could not be foreseen.
                picked += i32::from(z) & -i32::from(word >> bit & 1 == 1);
            }
        }
        *out = 2 * picked - job.sum;
    }
}
