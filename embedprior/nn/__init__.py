"""What teachers, students and the prior share: scaling, losses, one training loop, small networks, ridge regression."""
